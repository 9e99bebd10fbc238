// Clients that leave, that do not read, that read too slowly.
#include <sys/socket.h>

#include "tests/faults/world.hpp"

using namespace faults;

namespace {

constexpr size_t kPouredLineBytes = 8000;
constexpr int kPouredLines = 3000;

// Without end, faster than any client reads.
void pour(Conn& conn) {
  conn.stream_head();
  const std::string line = token_line(std::string(kPouredLineBytes, 'w') + " ");
  for (;;) conn.line(line);
}

std::string poured(const std::string& prompt) {
  if (prompt.rfind("pour", 0) != 0) return usual_reply(prompt);
  std::string all;
  for (int i = 0; i < kPouredLines; ++i) all += std::string(kPouredLineBytes, 'w') + " ";
  return all;
}

void log_turn(World& world, const std::string& app, const std::string& prompt, int status) {
  Turn turn;
  turn.prompt = prompt;
  turn.status = status;
  turn.outcome = status == 200 ? Outcome::acknowledged : Outcome::unknown;
  world.log.add(app, turn);
}

// Until Ollama saw its connection close; asserts that it did.
double closed_after_ms(const World& world, const std::string& prompt, Clock::time_point from) {
  const auto exchange = world.ollama.wait_for_request(prompt);
  REQUIRE(eventually([&] { return exchange->client_left().has_value(); }));
  return ms_between(from, *exchange->client_left());
}

enum class Moment { before_headers, before_the_first_token, after_the_first_token };

Script wait_for_leaving(Moment moment) {
  return [moment](Conn& conn) {
    if (moment == Moment::before_headers) conn.wait_until_client_leaves();
    conn.stream_head();
    if (moment == Moment::before_the_first_token) conn.wait_until_client_leaves();
    for (const std::string& token : usual_tokens(prompt_of(conn.request()))) conn.line(token_line(token));
    conn.wait_until_client_leaves();
  };
}

// Reads the head where there is one, and the first token where there is one.
int read_as_far_as(Connection& connection, Moment moment) {
  if (moment == Moment::before_headers) return 0;
  const int status = connection.read_head().status;
  std::string seen;
  while (moment == Moment::after_the_first_token && seen.find(" end\"") == std::string::npos) {
    const auto more = connection.read_body_some();
    if (!more) break;
    seen += *more;
  }
  return status;
}

}  // namespace

TEST_CASE("clients that leave before or after the first token, by FIN or RST, end Ollama's work within 1 s", "[fault][short][clients]") {
  World world;
  double slowest_ms = 0;
  int number = 0;
  for (const Moment moment : {Moment::before_headers, Moment::before_the_first_token, Moment::after_the_first_token}) {
    for (const bool by_rst : {false, true}) {
      world.ollama.answer_with(wait_for_leaving(moment));
      std::vector<std::pair<std::string, Connection>> clients;
      for (int i = 0; i < 8; ++i) {
        const std::string app = "leave-" + std::to_string(++number), prompt = app + "#1";
        Connection connection(world.endpoint());
        connection.send(chat_request(app, prompt));
        world.ollama.wait_for_request(prompt);
        log_turn(world, app, prompt, read_as_far_as(connection, moment));
        clients.emplace_back(prompt, std::move(connection));
      }
      const auto left = Clock::now();
      for (auto& [prompt, connection] : clients) by_rst ? connection.reset() : connection.close();
      for (const auto& [prompt, connection] : clients) slowest_ms = std::max(slowest_ms, closed_after_ms(world, prompt, left));
      if (moment != Moment::after_the_first_token) continue;
      for (const auto& [prompt, connection] : clients) {
        const auto rows = world.wait_for_rows(prompt.substr(0, prompt.find('#')), 2);
        REQUIRE(rows.size() == 2);
        CHECK(rows[1][1] == compacted(usual_reply(prompt)));
      }
    }
  }
  report("Ollama's side was closed " + ms_text(slowest_ms) + " after the client left at most");
  CHECK(slowest_ms < world.within_ms(1000));
  world.ollama.answer_with(talk());
  world.finish();
}

TEST_CASE("clients that never read are dropped at the write limit and hold no thread", "[fault][short][clients]") {
  World world({.arguments = {"--write-timeout", "1"}});
  world.reply_to = poured;
  world.ollama.answer_with(pour);
  // Each takes megabytes before its buffers are full, which a sanitizer makes long.
  const int count = world.sanitized() ? 4 : 16;
  Prober prober(world);
  std::vector<Connection> clients;
  const auto began = Clock::now();
  for (int i = 0; i < count; ++i) {
    const std::string app = "pour-" + std::to_string(i);
    clients.emplace_back(world.endpoint()).send(chat_request(app, app + "#1"));
    log_turn(world, app, app + "#1", 200);
  }
  double slowest_ms = 0;
  for (int i = 0; i < count; ++i) slowest_ms = std::max(slowest_ms, closed_after_ms(world, "pour-" + std::to_string(i) + "#1", began));
  report("Ollama's side was closed after " + ms_text(slowest_ms) + " at most, --write-timeout being 1000 ms");
  CHECK(slowest_ms < world.within_ms(4000));
  for (int i = 0; i < count; ++i) CHECK(world.wait_for_rows("pour-" + std::to_string(i), 2).size() == 2);
  prober.expect_within(world.within_ms(1000));
  world.ollama.answer_with(talk());
  world.finish();
}

TEST_CASE("a client that reads a byte a second is dropped at the write limit", "[fault][slow][clients]") {
  World world({.arguments = {"--write-timeout", "1"}, .tls = false});
  world.reply_to = poured;
  world.ollama.answer_with(pour);
  const Fd client = connect_to("127.0.0.1", world.endpoint().port, Deadline(kPatienceMs));
  const int small = 4096;
  ::setsockopt(client.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  const auto began = Clock::now();
  REQUIRE(send_all(client.get(), chat_request("pour", "pour#1")));
  log_turn(world, "pour", "pour#1", 200);
  const auto exchange = world.ollama.wait_for_request("pour#1");
  char byte = 0;
  while (!exchange->client_left() && ms_between(began, Clock::now()) < kPatienceMs) {
    REQUIRE(::recv(client.get(), &byte, 1, 0) == 1);
    eventually([&] { return exchange->client_left().has_value(); }, 1000);
  }
  const double dropped_ms = closed_after_ms(world, "pour#1", began);
  report("Ollama's side was closed after " + ms_text(dropped_ms) + ", --write-timeout being 1000 ms");
  CHECK(dropped_ms < world.within_ms(4000));
  CHECK(world.wait_for_rows("pour", 2).size() == 2);
  world.ollama.answer_with(talk());
  world.finish();
}
