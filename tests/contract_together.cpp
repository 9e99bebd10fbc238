// Contract sections 3.2, 3.3 and 3.13 for changes that share a transaction because they come at once (db.hpp):
// each client is told what became of its own.
#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "tests/contract_fixture.hpp"
#include "tests/harness/vitals.hpp"

using namespace contract;

namespace {

struct Posted {
  std::string message;
  int status = 0;  // 0: no answer
  std::string body;
  double ms = 0;
};

Request public_chatt(int, const std::string& message) {
  return {"POST", "/postchatt/", R"({"name":"n","message":)" + json_string(message) + "}", {}};
}

// Each client has a conversation of its own.
std::string app_of(int client) { return "app-of-" + std::to_string(client); }
Request prompt(int client, const std::string& message) { return {"POST", "/llmchat/", chat_body(app_of(client), message), {}}; }

// Clients that post at the same time, each on a connection that it keeps, until `enough` or until they have
// posted so many.
class Clients {
 public:
  using MessageOf = std::function<std::string(int client, int turn)>;
  using RequestOf = std::function<Request(int client, const std::string& message)>;

  Clients(const Endpoint& endpoint, int clients, int turns, const MessageOf& message_of, const RequestOf& request_of = public_chatt) {
    for (int client = 0; client < clients; ++client) {
      threads_.emplace_back([=, this] { run(endpoint, client, turns, message_of, request_of); });
    }
  }
  ~Clients() {
    enough_ = true;
    join();
  }
  Clients(const Clients&) = delete;
  Clients& operator=(const Clients&) = delete;

  [[nodiscard]] int answers(int status) {
    const std::lock_guard lock(mutex_);
    int count = 0;
    for (const Posted& posted : posted_) count += posted.status == status ? 1 : 0;
    return count;
  }
  void enough() { enough_ = true; }
  std::vector<Posted> all() {
    join();
    return posted_;
  }

 private:
  void run(const Endpoint& endpoint, int client, int turns, const MessageOf& message_of, const RequestOf& request_of) {
    std::unique_ptr<Connection> connection;
    for (int turn = 0; turn < turns && !enough_; ++turn) {
      Posted posted{message_of(client, turn), 0, "", 0};
      try {
        if (!connection) connection = std::make_unique<Connection>(endpoint);
        const auto before = Clock::now();
        connection->send(bytes_of(request_of(client, posted.message)));
        const Response response = connection->read_response();
        posted.ms = ms_between(before, Clock::now());
        posted.status = response.status();
        posted.body = response.body;
      } catch (const std::exception& error) {
        posted.body = error.what();
        connection.reset();
      }
      const std::lock_guard lock(mutex_);
      posted_.push_back(posted);
    }
  }
  void join() {
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

  std::atomic<bool> enough_{false};
  std::mutex mutex_;
  std::vector<Posted> posted_;  // guarded by mutex_
  std::vector<std::thread> threads_;
};

std::string numbered(int client, int turn) { return "m" + std::to_string(client) + "." + std::to_string(turn); }

// How often each public message is in the table.
std::map<std::string, int> stored(World& world) {
  std::map<std::string, int> counts;
  for (const Row& row : world.database.run("SELECT message FROM chatts WHERE appid IS NULL")) ++counts[row[0]];
  return counts;
}

// Some of the messages are not wanted by the table of a test.
bool is_bad(const std::string& message) { return message.rfind("bad", 0) == 0; }
std::string numbered_some_bad(int client, int turn) { return ((client * 7 + turn) % 5 == 0 ? "bad" : "") + numbered(client, turn); }

// What a client's conversation holds after so many turns.
std::string conversation_of(int client, int turns) {
  std::string all;
  for (int turn = 0; turn < turns; ++turn) {
    const std::string message = numbered(client, turn);
    all += (all.empty() ? "user:" : "|user:") + message + "|assistant:re-" + message;
  }
  return all;
}

}  // namespace

TEST_CASE("chatts that are posted at once are each stored exactly once (2)", "[store]") {
  World world;
  Clients clients(world.endpoint, 32, 10, numbered);
  const auto all = clients.all();
  const auto counts = stored(world);
  CHECK(all.size() == 320);
  CHECK(counts.size() == 320);
  for (const Posted& posted : all) {
    INFO(posted.message << ": " << posted.status << " " << posted.body);
    CHECK(posted.status == 200);
    CHECK((counts.count(posted.message) == 1 && counts.at(posted.message) == 1));
  }
  CHECK(world.database.value("SELECT count(DISTINCT id) FROM chatts") == "320");
}

TEST_CASE("of chatts posted at once only those that the database refuses are refused (3.3)", "[store]") {
  World world;
  world.database.run("ALTER TABLE chatts ADD CHECK (message NOT LIKE 'bad%')");
  Clients clients(world.endpoint, 32, 10, numbered_some_bad);
  const auto all = clients.all();
  const auto counts = stored(world);
  CHECK(all.size() == 320);
  int good = 0;
  for (const Posted& posted : all) {
    INFO(posted.message << ": " << posted.status << " " << posted.body);
    const bool bad = is_bad(posted.message);
    good += bad ? 0 : 1;
    CHECK(posted.status == (bad ? 400 : 200));
    CHECK((counts.count(posted.message) == 0) == bad);
    if (bad) CHECK(error_text(posted.body).find("does not accept") != std::string::npos);
  }
  CHECK(world.database.value("SELECT count(*) FROM chatts") == std::to_string(good));
}

TEST_CASE("of chatts posted at once only those that the database fails at otherwise are 500 (3.3)", "[store]") {
  World world;
  world.expect_errors();
  world.database.run(
      "CREATE FUNCTION fail_odd() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.message LIKE 'odd%' THEN RAISE EXCEPTION 'odd' "
      "USING ERRCODE = 'P0001'; END IF; RETURN NEW; END$$; CREATE TRIGGER fail_odd BEFORE INSERT ON chatts FOR EACH ROW EXECUTE "
      "FUNCTION fail_odd()");
  Clients clients(world.endpoint, 16, 8, [](int client, int turn) { return (client == 3 ? "odd" : "") + numbered(client, turn); });
  const auto all = clients.all();
  const auto counts = stored(world);
  for (const Posted& posted : all) {
    INFO(posted.message << ": " << posted.status << " " << posted.body);
    const bool odd = posted.message.rfind("odd", 0) == 0;
    CHECK(posted.status == (odd ? 500 : 200));
    CHECK((counts.count(posted.message) == 0) == odd);
  }
}

TEST_CASE("when the database goes away amid many posts, each client is told the truth in time (3.3)", "[store]") {
  for (const bool frozen : {true, false}) {
    INFO((frozen ? "it stops answering" : "it is gone"));
    World world({{"--db-timeout", "1"}, {}, true, true});
    world.expect_errors();
    constexpr int kClients = 32;
    Clients clients(world.endpoint, kClients, 1'000'000, numbered);
    REQUIRE(eventually([&] { return clients.answers(200) >= 4 * kClients; }));
    frozen ? world.database_proxy->freeze() : world.database_proxy->outage();
    REQUIRE(eventually([&] { return clients.answers(503) >= 2 * kClients; }));
    clients.enough();
    const auto all = clients.all();
    world.database_proxy->pass();
    REQUIRE(eventually([&] { return world.post("/postchatt/", R"({"name":"n","message":"back"})").status() == 200; }));
    // What was sent before is over: nobody is at work in the database any more.
    REQUIRE(eventually([&] {
      return world.database.value("SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid() AND state <> 'idle'",
                                  {world.database.name()}) == "0";
    }));
    const auto counts = stored(world);
    int unknown = 0;
    for (const Posted& posted : all) {
      INFO(posted.message << ": " << posted.status << " after " << posted.ms << " ms: " << posted.body);
      const int rows = counts.count(posted.message) == 0 ? 0 : counts.at(posted.message);
      CHECK(posted.ms < 3000);
      if (posted.status == 200) {
        CHECK(rows == 1);
        continue;
      }
      REQUIRE(posted.status == 503);
      if (error_text(posted.body).find("not known") != std::string::npos) {
        ++unknown;
        CHECK(rows <= 1);
      } else {
        CHECK(error_text(posted.body).find("nothing of this request was stored") != std::string::npos);
        CHECK(rows == 0);
      }
    }
    if (frozen) CHECK(unknown > 0);
    Clients again(world.endpoint, 8, 3, [](int client, int turn) { return "again" + numbered(client, turn); });
    for (const Posted& posted : again.all()) {
      INFO(posted.message << ": " << posted.body);
      CHECK(posted.status == 200);
    }
  }
}

TEST_CASE("prompts that come at once each get the answer to their own conversation, stored once and in order (3.2)", "[store]") {
  World world;
  world.ollama.answer_with(echo());
  constexpr int kClients = 24, kTurns = 6;
  Clients clients(world.endpoint, kClients, kTurns, numbered, prompt);
  for (const Posted& posted : clients.all()) {
    INFO(posted.message << ": " << posted.status << " " << posted.body);
    CHECK(posted.status == 200);
    CHECK(posted.body.find('"' + posted.message + '"') != std::string::npos);
  }
  for (int client = 0; client < kClients; ++client) {
    const auto rows = world.database.wait_for_rows(app_of(client), size_t{2} * kTurns);
    CHECK(joined(rows) == conversation_of(client, kTurns));
  }
  const auto exchanges = world.ollama.exchanges();
  CHECK(exchanges.size() == size_t{kClients} * kTurns);
  for (const auto& exchange : exchanges) {
    // "m<client>.0,re-m<client>.0,m<client>.1,": all of one conversation, and of no other.
    const std::string sent = contents_sent(*exchange);
    const int client = std::stoi(sent.substr(1));
    std::string expected;
    int turn = 0;
    while (expected.size() < sent.size()) {
      if (turn > 0) expected += "re-" + numbered(client, turn - 1) + ",";
      expected += numbered(client, turn++) + ",";
    }
    CHECK(sent == expected);
  }
}

TEST_CASE("of prompts that come at once only those that the database refuses are refused (3.3)", "[store]") {
  World world;
  world.ollama.answer_with(echo());
  world.database.run("ALTER TABLE chatts ADD CHECK (message NOT LIKE 'bad%')");
  Clients clients(world.endpoint, 24, 6, numbered_some_bad, prompt);
  int good = 0;
  for (const Posted& posted : clients.all()) {
    INFO(posted.message << ": " << posted.status << " " << posted.body);
    const bool bad = is_bad(posted.message);
    good += bad ? 0 : 1;
    CHECK(posted.status == (bad ? 400 : 200));
    if (bad) CHECK(error_text(posted.body).find("does not accept") != std::string::npos);
  }
  CHECK(eventually([&] { return world.database.value("SELECT count(*) FROM chatts") == std::to_string(2 * good); }));
}

TEST_CASE("of prompts that come at once only the one whose conversation another chatterd works on waits (3.13)", "[store]") {
  World world({{"--turn-wait", "1"}});
  world.ollama.answer_with(echo());
  constexpr int kClients = 24, kTurns = 3, kHeldUp = 5;
  world.database.run("INSERT INTO chatterd_turns (appid, holder, until) VALUES ($1, gen_random_uuid(), now() + '1 h')", {app_of(kHeldUp)});
  Clients clients(world.endpoint, kClients, kTurns, numbered, prompt);
  for (const Posted& posted : clients.all()) {
    INFO(posted.message << ": " << posted.status << " after " << posted.ms << " ms: " << posted.body);
    CHECK(posted.status == (posted.message.rfind("m" + std::to_string(kHeldUp) + ".", 0) == 0 ? 409 : 200));
  }
  for (int client = 0; client < kClients; ++client) {
    const int turns = client == kHeldUp ? 0 : kTurns;
    CHECK(joined(world.database.wait_for_rows(app_of(client), size_t{2} * static_cast<size_t>(turns))) == conversation_of(client, turns));
  }
}

TEST_CASE("prompts that come while others are being stored share a transaction, unless they are long (db.hpp)", "[store]") {
  for (const bool are_long : {false, true}) {
    INFO((are_long ? "long" : "short"));
    World world;
    world.ollama.answer_with(echo());
    constexpr int kClients = 12;
    const size_t threads = threads_of(world.chatterd->pid());
    SqlConnection locker(world.database.conninfo());
    locker.run("BEGIN");
    locker.run("LOCK TABLE chatts IN SHARE MODE");
    const std::string filling(are_long ? 200'000 : 0, 'x');
    Clients clients(world.endpoint, kClients, 1, [=](int client, int turn) { return numbered(client, turn) + filling; }, prompt);
    // Each of them has a thread of the pool.
    REQUIRE(eventually([&] { return threads_of(world.chatterd->pid()) >= threads + kClients; }));
    locker.run("COMMIT");
    for (const Posted& posted : clients.all()) CHECK(posted.status == 200);
    const std::string transactions = world.database.value("SELECT count(DISTINCT xmin::text) FROM chatts WHERE name = 'user'");
    CHECK((transactions == std::to_string(kClients)) == are_long);
  }
}

TEST_CASE("with two connections to the database a change that waits for a lock leaves one to others (db.hpp)", "[store]") {
  World world({{"--db-pool", "2", "--db-timeout", "20"}});
  world.ollama.answer_with(echo());
  world.database.run("INSERT INTO chatterd_turns (appid, holder, until) VALUES ($1, gen_random_uuid(), now())", {app_of(0)});
  SqlConnection locker(world.database.conninfo());
  locker.run("BEGIN");
  locker.run("SELECT FROM chatterd_turns FOR UPDATE");
  Clients held_up(world.endpoint, 1, 1, numbered, prompt);
  REQUIRE(eventually([&] {
    return world.database.value("SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'", {world.database.name()}) == "1";
  }));
  Clients other(world.endpoint, 1, 1, numbered, [](int, const std::string& message) { return prompt(1, message); });
  for (const Posted& posted : other.all()) CHECK(posted.status == 200);
  locker.run("COMMIT");
  for (const Posted& posted : held_up.all()) CHECK(posted.status == 200);
}

TEST_CASE("changes that wait for a lock in the database hold up no others for long (db.hpp)", "[store]") {
  World world({{"--db-timeout", "20"}});
  world.ollama.answer_with(echo());
  constexpr int kHeldUp = 3, kOthers = 3;  // the first two would have all places for transactions
  for (int client = 0; client < kHeldUp; ++client) {
    world.database.run("INSERT INTO chatterd_turns (appid, holder, until) VALUES ($1, gen_random_uuid(), now())", {app_of(client)});
  }
  SqlConnection locker(world.database.conninfo());
  locker.run("BEGIN");
  locker.run("SELECT FROM chatterd_turns FOR UPDATE");
  std::deque<Clients> held_up;
  for (int client = 0; client < kHeldUp; ++client) {  // one after the other: those that come at once share a transaction
    held_up.emplace_back(world.endpoint, 1, 1, numbered, [=](int, const std::string& message) { return prompt(client, message); });
    REQUIRE(eventually([&] {
      return world.database.value("SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'", {world.database.name()}) ==
             std::to_string(client + 1);
    }));
  }
  Clients others(world.endpoint, kOthers, 2, numbered, [](int client, const std::string& message) { return prompt(kHeldUp + client, message); });
  for (const Posted& posted : others.all()) {
    INFO(posted.message << ": " << posted.status << " after " << posted.ms << " ms: " << posted.body);
    CHECK(posted.status == 200);
  }
  locker.run("COMMIT");
  for (Clients& client : held_up) {
    for (const Posted& posted : client.all()) CHECK(posted.status == 200);
  }
}
