// Several faults at once, in an order that nobody thought of.
#include <signal.h>

#include <random>

#include "tests/faults/world.hpp"

using namespace faults;

namespace {

constexpr int kClients = 24;

// Ollama that in one turn of three breaks off somewhere, by FIN, by RST or within a chunk.
void unreliable(Conn& conn) {
  const std::string prompt = prompt_of(conn.request());
  const size_t chance = std::hash<std::string>()(prompt);
  const std::vector<std::string> tokens = usual_tokens(prompt);
  const size_t end = chance % 3 == 0 ? (chance / 3) % tokens.size() : tokens.size();
  conn.stream_head();
  for (size_t i = 0; i < end; ++i) {
    conn.pause(static_cast<int>(chance % 20));
    conn.line(token_line(tokens[i]));
  }
  if (end == tokens.size()) {
    conn.line(done_line());
    return conn.end_chunks();
  }
  if (chance % 5 == 0) return conn.rst();
  if (chance % 5 == 1) conn.raw("ff\r\n{\"mess");
  conn.fin();
}

// A turn whose client goes away, by FIN or RST, before or after the stream has begun.
Turn leave_early(const Endpoint& endpoint, const std::string& app, const std::string& prompt, unsigned chance) {
  Turn turn;
  turn.prompt = prompt;
  turn.outcome = Outcome::refused;  // until the request is on its way
  try {
    Connection connection(endpoint);
    turn.outcome = Outcome::unknown;
    connection.send(chat_request(app, prompt));
    if (chance % 2 == 0) {
      turn.status = connection.read_head().status;
      turn.outcome = outcome_of(turn.status, turn.status == 200 ? "" : connection.read_body_to_end());
    }
    if (chance % 3 == 0) connection.reset();
  } catch (const std::exception&) {
    // The outcome so far stands.
  }
  return turn;
}

void talk_or_leave(World& world, int number, const std::atomic<bool>& stopping) {
  std::mt19937 random(static_cast<unsigned>(number));
  const std::string app = "mix-" + std::to_string(number);
  for (int n = 0; !stopping; ++n) {
    const std::string prompt = app + "#" + std::to_string(n);
    if (random() % 4 == 0) world.log.add(app, leave_early(world.endpoint(), app, prompt, static_cast<unsigned>(random())));
    else if (world.turn(app, prompt).status != 200) std::this_thread::sleep_for(std::chrono::milliseconds(40));
  }
}

}  // namespace

TEST_CASE("PostgreSQL, Ollama, clients and chatterd failing at random together lose nothing", "[fault][slow][mix]") {
  Cluster cluster;
  World world({.arguments = {"--store-retry", "2"},
               .cluster = &cluster,
               .events = {"ollama_away", "database_away", "reply_spooled", "replies_found_in_spool", "spooled_reply_stored"}});
  world.ollama.answer_with(unreliable);
  std::atomic<bool> stopping{false};
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&world, i, &stopping] { talk_or_leave(world, i, stopping); });
  }
  std::mt19937 random(20260301);
  const auto pause = [&random](unsigned ms_max) { std::this_thread::sleep_for(std::chrono::milliseconds(random() % ms_max)); };
  for (int round = 0; round < 15; ++round) {
    pause(1500);
    cluster.stop_immediately();
    pause(600);
    if (round % 2 == 0) {
      world.kill();
      pause(200);
      if (round % 4 == 0) cluster.start();
      world.start();
    }
    pause(600);
    if (!cluster.is_running()) cluster.start();
  }
  stopping = true;
  for (std::thread& client : clients) client.join();
  world.ollama.answer_with(talk());
  world.wait_for_service();
  world.finish();
}
