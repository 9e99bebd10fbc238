#include "tests/long_answers.hpp"

namespace contract {

std::string ManyLines::token(size_t i) { return "t" + std::to_string(i) + " "; }

std::string ManyLines::text() {
  std::string all;
  for (size_t i = 0; i < kMany; ++i) all += token(i);
  return all;
}

std::vector<std::string> ManyLines::lines() {
  std::vector<std::string> all;
  for (size_t i = 0; i < kMany; ++i) all.push_back(token_line(token(i)));
  return all;
}

Script ManyLines::then(const Script& rest) const {
  return [read = read_, rest](Conn& conn) {
    conn.stream_head();
    for (size_t i = 0; i < kMany; ++i) {
      if (i >= kMany - kSlow) conn.pause(4);
      conn.line(token_line(token(i)));
      conn.wait(read[i]);
    }
    rest(conn);
  };
}

void ManyLines::read(Stream& stream) const {
  for (size_t i = 0; i < kMany; ++i) {
    CHECK(stream.events(i + 1).back().data == token_line(token(i)));
    read_[i].open();
  }
}

void silence(Conn& conn) { conn.wait_until_client_leaves(); }

void end_well(Conn& conn) {
  conn.line(done_line());
  conn.end_chunks();
}

Script pour(std::string_view token, bool lines_come) {
  return [line = token_line(token), lines_come](Conn& conn) {
    while (lines_come) {
      conn.line(line);
      conn.pause(4);
    }
    silence(conn);
  };
}

void check_stored_so_far(World& world, const std::string& app, const std::string& more) {
  const auto rows = world.database.wait_for_rows(app, 2);
  REQUIRE(rows.size() == 2);
  CHECK(rows[1][1].rfind(ManyLines::text() + more, 0) == 0);
}

}  // namespace contract
