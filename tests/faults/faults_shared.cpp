// Two chatterds on one database, when one of them or the database fails.
#include <signal.h>

#include <random>

#include "tests/faults/world.hpp"

using namespace faults;

namespace {

constexpr int kClients = 16;

// The second chatterd. Its clients ask for its port while it is started anew.
class Second {
 public:
  explicit Second(const World& world) : world_(world) { start(); }
  void start() {
    chatterd_ = world_.start_another();
    port_ = chatterd_->wait_until_ready().port;
  }
  void kill() {
    chatterd_->signal(SIGKILL);
    REQUIRE(chatterd_->wait_exit(kPatienceMs) == 128 + SIGKILL);
  }
  void stop() { CHECK(chatterd_->stop() == 0); }
  [[nodiscard]] Endpoint endpoint() const { return {"127.0.0.1", port_, true}; }

 private:
  const World& world_;
  std::unique_ptr<Chatterd> chatterd_;
  std::atomic<int> port_{0};
};

// A turn whose client leaves in mid-stream, so that its next one finds this one still at work.
Turn leave_early(const Endpoint& endpoint, const std::string& app, const std::string& prompt) {
  Turn turn;
  turn.prompt = prompt;
  turn.outcome = Outcome::refused;  // until the request is on its way
  try {
    Connection connection(endpoint);
    turn.outcome = Outcome::unknown;
    connection.send(chat_request(app, prompt));
    turn.status = connection.read_head(4 * kPatienceMs).status;
    turn.outcome = outcome_of(turn.status, turn.status == 200 ? "" : connection.read_body_to_end());
  } catch (const std::exception&) {
    // The outcome so far stands.
  }
  return turn;
}

// A conversation that goes now to one, now to the other.
void talk_to_both(World& world, const Second& second, int number, const std::atomic<bool>& stopping) {
  std::mt19937 random(static_cast<unsigned>(number));
  const std::string app = "both-" + std::to_string(number);
  for (int n = 0; !stopping; ++n) {
    const std::string prompt = app + "#" + std::to_string(n);
    const Endpoint endpoint = random() % 2 == 0 ? world.endpoint() : second.endpoint();
    const Turn turn = random() % 4 == 0 ? leave_early(endpoint, app, prompt) : run_turn(endpoint, app, prompt);
    world.log.add(app, turn);
    if (turn.status != 200) std::this_thread::sleep_for(std::chrono::milliseconds(40));
  }
}

}  // namespace

TEST_CASE("conversations that change between two chatterds lose nothing when one is killed or the database restarts", "[fault][slow][shared]") {
  Cluster cluster;
  World world({.arguments = {"--store-retry", "2", "--user", "root"},  // so that each may take over the other's spool
               .cluster = &cluster,
               .events = {"database_away", "reply_spooled", "replies_found_in_spool", "spooled_reply_stored"}});
  Second second(world);
  std::atomic<bool> stopping{false};
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&world, &second, i, &stopping] { talk_to_both(world, second, i, stopping); });
  }
  std::mt19937 random(20261122);
  const auto pause = [&random](unsigned ms_max) { std::this_thread::sleep_for(std::chrono::milliseconds(500 + random() % ms_max)); };
  for (int round = 0; round < 4; ++round) {
    pause(1500);
    cluster.stop_immediately();
    pause(1500);
    if (round % 2 == 0) second.kill();
    cluster.start();
    pause(1500);
    if (round % 2 == 0) second.start();
    pause(3000);
    if (round % 2 == 1) {
      second.kill();
      second.start();
    }
  }
  stopping = true;
  for (std::thread& client : clients) client.join();
  world.wait_for_service();
  second.stop();
  CHECK(world.log.count(Outcome::acknowledged) > size_t{10} * kClients);
  world.finish();
}
