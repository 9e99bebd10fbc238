// Contract sections 3.7 and 3.8 in long answers: from Ollama's lines to events, byte for byte.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "tests/long_answers.hpp"

using namespace contract;

namespace {

// How often the threads of the pump have gone to sleep so far.
long pump_sleeps(pid_t pid) {
  long sleeps = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    std::ifstream status(task.path() / "status");
    std::string word, name;
    for (status >> word >> name; status >> word;) {
      long count = 0;
      if (word == "voluntary_ctxt_switches:" && status >> count && (name == "pump" || name == "express")) sleeps += count;
    }
  }
  return sleeps;
}

}  // namespace

TEST_CASE("an answer is passed on by the pump while it comes at the pace of reading, and by its own thread while it hurries", "[long]") {
  World world;
  const ManyLines many;
  world.ollama.answer_with(many.then(end_well));
  Stream stream(world.endpoint, chat_body("app", "x"));
  const auto pass_on = [&](size_t from, size_t to) {
    for (size_t i = from; i < to; ++i) {
      stream.events(i + 1);
      many.gates()[i].open();
    }
    return pump_sleeps(world.chatterd->pid());
  };
  const long at_first = pass_on(0, 1);  // each of its threads sleeps once when it has started
  const long when_hurried = pass_on(1, kMany - kSlow);
  pass_on(kMany - kSlow, kMany);
  CHECK(when_hurried - at_first < static_cast<long>(kMany - kSlow) - 1);
  // Two lines show the pace.
  CHECK(eventually([&] { return pump_sleeps(world.chatterd->pid()) >= when_hurried + static_cast<long>(kSlow) - 2; }));
  CHECK(stream.rest().size() == kMany + 1);
}

TEST_CASE("an answer that pauses is passed on by the pump, however many lines come at a time", "[long]") {
  World world;
  constexpr int kPieces = 12;
  const Gate first_read;
  world.ollama.answer_with([first_read](Conn& conn) {
    const std::string piece = token_line("a ") + "\n" + token_line("b ") + "\n";
    conn.stream_head();
    conn.chunk(piece);
    conn.wait(first_read);
    for (int i = 1; i < kPieces; ++i) {
      conn.pause(30);
      conn.chunk(piece);
    }
    end_well(conn);
  });
  Stream stream(world.endpoint, chat_body("app", "x"));
  stream.events(2);
  const long at_first = pump_sleeps(world.chatterd->pid());
  first_read.open();
  CHECK(stream.rest().size() == 2 * kPieces + 1);
  // It comes back after some pieces of several lines, and is lent again.
  CHECK(pump_sleeps(world.chatterd->pid()) - at_first >= kPieces / 2);
}

TEST_CASE("each of many lines is written as soon as it has arrived, byte for byte (3.7)", "[long]") {
  for (const bool tls : {true, false}) {
    INFO((tls ? "HTTPS" : "HTTP"));
    World world({{}, {}, tls});
    const ManyLines many;
    world.ollama.answer_with(many.then(end_well));
    Stream stream(world.endpoint, chat_body("app", "x"));
    many.read(stream);
    CHECK(stream.rest().size() == kMany + 1);
    auto lines = ManyLines::lines();
    lines.push_back(done_line());
    CHECK(stream.bytes == data_events(lines));
    CHECK(joined(world.database.wait_for_rows("app", 2)) == "user:x|assistant:" + ManyLines::text());
  }
}

TEST_CASE("after many lines too a line may come in pieces, and several in one (3.7)", "[long]") {
  const Shared world;
  const ManyLines many;
  const std::vector<std::string> lines = {token_line("caf\xc3\xa9 "), token_line("b "), R"({"a":1.0,"b":"\u00e9\/"})", token_line("c"), done_line()};
  const size_t cut = lines[0].find('\xc3') + 1;
  const Gate first, second;
  world->ollama.answer_with(many.then([=](Conn& conn) {
    conn.chunk(lines[0].substr(0, cut));
    conn.pause(20);
    conn.chunk(lines[0].substr(cut));  // its line end is still missing
    conn.pause(20);
    conn.chunk("\n" + lines[1] + "\n" + lines[2].substr(0, 5));
    conn.wait(first);
    // In the midst of a chunk, and of its size.
    const std::string rest = lines[2].substr(5) + "\n\n" + lines[3] + "\n";
    char size[16];
    std::snprintf(size, sizeof size, "%08zx\r\n", rest.size());
    const std::string chunk = size + rest + "\r\n";
    for (size_t at = 0; at < chunk.size(); at += 7) {
      conn.raw(chunk.substr(at, 7));
      conn.pause(2);
    }
    conn.wait(second);
    conn.chunk(lines[4]);
    conn.end_chunks();
  }));
  Stream stream(world->endpoint, chat_body(fresh_app(), "x"));
  many.read(stream);
  CHECK(stream.events(kMany + 2).back().data == lines[1]);
  first.open();
  CHECK(stream.events(kMany + 4).back().data == lines[3]);
  second.open();
  stream.rest();
  std::vector<std::string> all = ManyLines::lines();
  all.insert(all.end(), lines.begin(), lines.end());
  CHECK(stream.bytes == data_events(all));
}

TEST_CASE("after many lines a line that is not a JSON object becomes an error event, and the next follow (3.8)", "[long]") {
  const Shared world;
  const ManyLines many;
  world->ollama.answer_with(many.then([](Conn& conn) {
    conn.line("garbage");
    conn.pause(10);
    conn.line(error_line("oh"));
    conn.pause(10);
    end_well(conn);
  }));
  Stream stream(world->endpoint, chat_body(fresh_app(), "x"));
  many.read(stream);
  const auto events = stream.rest();
  INFO(shown(events));
  REQUIRE(events.size() == kMany + 3);
  error_event_text(events[kMany]);
  CHECK(error_event_text(events[kMany + 1]) == "oh");
  CHECK(events.back().data == done_line());
}

TEST_CASE("the connection to Ollama serves the next request after an answer of many lines (3.12)", "[long]") {
  World world;
  int first = 0;
  for (int i = 0; i < 3; ++i) {
    const ManyLines many;
    const std::string mark = fresh_mark();
    world.ollama.answer_with(many.then(end_well));
    Stream stream(world.endpoint, chat_body("app", mark));
    many.read(stream);
    CHECK(stream.rest().size() == kMany + 1);
    const int connection = world.ollama.wait_for_request(mark)->request().connection;
    if (i == 0) first = connection;
    CHECK(connection == first);
  }
}

TEST_CASE("llmprompt passes each of many lines on as soon as it arrives, unchanged (2)", "[long]") {
  for (const bool tls : {true, false}) {
    INFO((tls ? "HTTPS" : "HTTP"));
    World world({{}, {}, tls});
    const ManyLines many;
    world.ollama.answer_with(many.then([](Conn& conn) {
      conn.chunk("not JSON\n\n{\"cut\"");
      conn.pause(10);
      conn.chunk(":1}\n");
      conn.end_chunks();
    }));
    Stream stream(world.endpoint, R"({"model":"m","prompt":"x"})", "/llmprompt/");
    std::string expected;
    const auto lines = ManyLines::lines();
    for (size_t i = 0; i < kMany; ++i) {
      expected += lines[i] + "\n";
      stream.read_until(lines[i] + "\n");
      many.gates()[i].open();
    }
    expected += "not JSON\n\n{\"cut\":1}\n";
    stream.read_until("{\"cut\":1}\n");
    CHECK_FALSE(stream.connection.read_body_some().has_value());
    CHECK(stream.connection.complete());
    CHECK(stream.bytes == expected);
  }
}
