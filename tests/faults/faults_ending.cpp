// chatterd told to stop, and killed.
#include <signal.h>

#include <random>

#include "tests/faults/world.hpp"

using namespace faults;

namespace {

constexpr int kDrainMs = 2000;

std::string app_name(int i) { return "drain-" + std::to_string(i); }

// Streams of even number end when the gate opens; the others never do.
Script half_endless(const Gate& gate) {
  return [gate](Conn& conn) {
    const std::string prompt = prompt_of(conn.request());
    conn.stream_head();
    for (const std::string& token : usual_tokens(prompt)) conn.line(token_line(token));
    if ((prompt[prompt.find('#') - 1] - '0') % 2 == 0) conn.wait(gate);
    else conn.wait_until_client_leaves();
    conn.line(done_line());
    conn.end_chunks();
  };
}

struct Ended {
  int status = 0;
  std::string body;
  bool complete = false;
};

class Streams {
 public:
  Streams(World& world, int count) : ended_(static_cast<size_t>(count)) {
    for (int i = 0; i < count; ++i) {
      clients_.emplace_back([this, &world, i] {
        Ended& mine = ended_[static_cast<size_t>(i)];
        Turn turn;
        turn.prompt = app_name(i) + "#1";
        try {
          Connection connection(world.endpoint());
          connection.send(chat_request(app_name(i), turn.prompt));
          mine.status = connection.read_head().status;
          mine.body = connection.read_body_to_end(4 * kPatienceMs);
          mine.complete = connection.complete();
        } catch (const std::exception&) {
          // Judged by what is missing.
        }
        turn.status = mine.status;
        turn.outcome = outcome_of(mine.status, mine.body);
        turn.reply_due = mine.complete && turn.status == 200;
        world.log.add(app_name(i), turn);
      });
    }
    for (int i = 0; i < count; ++i) world.ollama.wait_for_request(app_name(i) + "#1");
  }
  ~Streams() { join(); }
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;
  const std::vector<Ended>& join() {
    for (std::thread& client : clients_) client.join();
    clients_.clear();
    return ended_;
  }

 private:
  std::vector<Ended> ended_;
  std::vector<std::thread> clients_;
};

bool is_refused(const World& world) { return !try_connect("127.0.0.1", world.endpoint().port, Deadline(1000)).is_open(); }

void end_by_sigterm(int count) {
  World world({.arguments = {"--drain", "2"}});
  const Gate gate;
  world.ollama.answer_with(half_endless(gate));
  Streams streams(world, count);
  const auto began = Clock::now();
  world.chatterd().signal(SIGTERM);
  CHECK(eventually([&] { return is_refused(world); }, world.within_ms(1000)));
  const double refused_ms = ms_between(began, Clock::now());
  gate.open();
  const auto status = world.chatterd().wait_exit(world.within_ms(kDrainMs + 5000));
  const double exit_ms = ms_between(began, Clock::now());
  CHECK(status.value_or(-1) == 0);
  CHECK(exit_ms > kDrainMs * 0.9);
  CHECK(exit_ms < world.within_ms(kDrainMs + 1500));
  const std::vector<Ended>& ended = streams.join();
  for (int i = 0; i < count; ++i) {
    const Ended& end = ended[static_cast<size_t>(i)];
    INFO(app_name(i) << ": status " << end.status << "\n" << end.body);
    CHECK(end.status == 200);
    CHECK(end.complete);
    CHECK((end.body.find("event: error") != std::string::npos) == (i % 2 == 1));
    CHECK((end.body.find("\"done\":true") != std::string::npos) == (i % 2 == 0));
  }
  report("new clients were refused after " + ms_text(refused_ms) + ", the exit came after " +
         ms_text(exit_ms) + ", --drain being " + std::to_string(kDrainMs));
  world.ollama.answer_with(talk());
  world.start();
  world.finish();
}

void kill_in_a_loop(int rounds, int conversations) {
  World world({.events = {"replies_found_in_spool", "spooled_reply_stored"}});
  world.ollama.answer_with(talk(8));
  {
    std::mt19937 random(20260101);
    Load load(world, conversations);
    for (int round = 0; round < rounds; ++round) {
      const size_t before = world.log.count(Outcome::acknowledged);
      REQUIRE(eventually([&] { return world.log.count(Outcome::acknowledged) > before; }));
      std::this_thread::sleep_for(std::chrono::milliseconds(random() % 300));
      world.kill();
      world.start();
    }
    world.wait_for_service();
  }
  world.finish();
}

}  // namespace

TEST_CASE("SIGTERM with 32 streams running lets them finish, then tells them, and exits with 0", "[fault][slow][ending]") {
  end_by_sigterm(32);
}

TEST_CASE("SIGTERM with 8 streams running lets them finish, then tells them, and exits with 0", "[fault][short][ending]") {
  end_by_sigterm(8);
}

TEST_CASE("a second SIGTERM ends at once", "[fault][short][ending]") {
  World world({.arguments = {"--drain", "60"}});
  world.ollama.answer_with(half_endless(Gate()));
  Streams streams(world, 4);
  world.chatterd().signal(SIGTERM);
  CHECK(eventually([&] { return is_refused(world); }));
  CHECK_FALSE(world.chatterd().wait_exit(300).has_value());
  const auto began = Clock::now();
  world.chatterd().signal(SIGTERM);
  CHECK(world.chatterd().wait_exit(kPatienceMs).value_or(-1) == 0);
  const double took_ms = ms_between(began, Clock::now());
  report("the exit came " + ms_text(took_ms) + " after the second SIGTERM");
  CHECK(took_ms < world.within_ms(500));
  streams.join();
  world.ollama.answer_with(talk());
  world.start();
  world.finish();
}

TEST_CASE("kill -9 fifty times at random moments under load loses nothing", "[fault][slow][ending]") { kill_in_a_loop(50, 16); }

TEST_CASE("kill -9 three times at random moments under load loses nothing", "[fault][short][ending]") { kill_in_a_loop(3, 8); }
