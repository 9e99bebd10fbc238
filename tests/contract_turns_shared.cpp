// Contract sections 3.13 and 3.14 with two chatterds on one database (db.hpp says what holds between them).
#include <atomic>
#include <barrier>
#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

// A World and a second chatterd with the same database and the same Ollama.
class Two {
 public:
  explicit Two(Arguments arguments = {"--turn-wait", "30"}) : world({arguments}), arguments_(std::move(arguments)) {
    second = start();
    endpoint = second->wait_until_ready();
  }
  ~Two() {
    if (second->wait_exit(0)) return;
    CHECK(second->stop() == 0);
    CHECK(unexpected_lines(second->err(), world.errors_expected()) == "");
  }
  Two(const Two&) = delete;
  Two& operator=(const Two&) = delete;

  [[nodiscard]] std::unique_ptr<Chatterd> start(const Arguments& more = {}) const {
    Arguments arguments = usual_arguments(world.database.conninfo(), world.ollama.url());
    arguments.insert(arguments.end(), arguments_.begin(), arguments_.end());
    arguments.insert(arguments.end(), more.begin(), more.end());
    return std::make_unique<Chatterd>(arguments);
  }
  [[nodiscard]] const Endpoint& endpoint_of(int which) const { return which % 2 == 0 ? world.endpoint : endpoint; }
  [[nodiscard]] Response post_second(const std::string& path, const std::string& body) const {
    return exchange(endpoint, {"POST", path, body, {}});
  }

  World world;
  std::unique_ptr<Chatterd> second;
  Endpoint endpoint;  // of the second

 private:
  const Arguments arguments_;
};

std::string prep_body(const std::string& app) {
  return R"({"appID":")" + app + R"(","messages":[{"role":"system","content":"new"}]})";
}

// As another chatterd would, had this one lost its turn because it was not renewed in time.
void lose_turn(World& world, const std::string& app) {
  world.database.run("UPDATE chatterd_turns SET holder = gen_random_uuid(), until = now() WHERE appid = '" + app + "'");
}

}  // namespace

TEST_CASE("turns of one conversation on two chatterds never interleave, and each sees all before it (3.13)", "[shared]") {
  Two two;
  std::atomic<int> running{0}, overlaps{0};
  two.world.ollama.answer_with([&running, &overlaps](Conn& conn) {
    if (++running > 1) ++overlaps;
    const std::string prompt = last_content(conn.request().body);
    conn.stream_head();
    conn.line(token_line("re-"));
    conn.pause(5);
    conn.line(token_line(prompt));
    --running;
    conn.line(done_line());
    conn.end_chunks();
  });
  constexpr int kClients = 6, kTurns = 12;
  std::atomic<int> ok{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      for (int turn = 0; turn < kTurns; ++turn) {
        try {
          const std::string prompt = "p" + std::to_string(client) + "." + std::to_string(turn);
          ok += exchange(two.endpoint_of(client), {"POST", "/llmchat/", chat_body("app", prompt), {}}).status() == 200 ? 1 : 0;
        } catch (const std::exception&) {
          // Counted as not ok.
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(ok == kClients * kTurns);
  CHECK(overlaps == 0);
  const auto rows = two.world.database.wait_for_rows("app", size_t{2} * kClients * kTurns);
  REQUIRE(rows.size() == size_t{2} * kClients * kTurns);
  for (size_t i = 0; i < rows.size(); i += 2) {
    INFO(i << ": " << rows[i][1] << ", " << rows[i + 1][1]);
    CHECK(rows[i][0] == "user");
    CHECK(rows[i + 1][0] == "assistant");
    CHECK(rows[i + 1][1] == "re-" + rows[i][1]);
  }
  for (const auto& exchange : two.world.ollama.exchanges()) {
    const auto messages = nlohmann::json::parse(exchange->request().body)["messages"];
    CHECK(messages.size() % 2 == 1);
  }
}

TEST_CASE("two chatterds with many prompts for the same conversations never wait for each other in a circle (3.13)", "[shared]") {
  Two two;
  two.world.ollama.answer_with(echo());
  // Transactions that take long, so that those of the two meet.
  two.world.database.run(
      "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END$$;"
      " CREATE TRIGGER dawdle BEFORE INSERT ON chatts FOR EACH ROW EXECUTE FUNCTION dawdle()");
  constexpr int kClients = 24, kRounds = 6;
  std::barrier all_ready(kClients);
  std::atomic<int> ok{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      for (int round = 0; round < kRounds; ++round) {
        // Each conversation is new, and wanted by one client of each chatterd at once.
        const std::string app = "app" + std::to_string(round) + "." + std::to_string(client / 2);
        all_ready.arrive_and_wait();
        try {
          ok += exchange(two.endpoint_of(client), {"POST", "/llmchat/", chat_body(app, "p"), {}}).status() == 200 ? 1 : 0;
        } catch (const std::exception&) {
          // Counted as not ok.
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(ok == kClients * kRounds);
  // A session has counted its deadlocks once it has ended.
  CHECK(two.second->stop() == 0);
  two.world.stop();
  REQUIRE(eventually([&] {
    return two.world.database.value("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()") == "0";
  }));
  CHECK(two.world.database.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == "0");
}

TEST_CASE("a request waits for a turn on another chatterd and has its reply in the history (3.13)", "[shared]") {
  Two two;
  const Gate first_done;
  two.world.ollama.answer_with(echo("first", first_done));
  Stream first(two.world.endpoint, chat_body("app", "first"));
  first.events(2);
  Stream second(two.endpoint, chat_body("app", "second"));
  CHECK(second.connection.stays_silent(500));
  CHECK(joined(two.world.database.conversation("app")) == "user:first");
  CHECK(two.post_second("/llmchat/", chat_body("other", "x")).status() == 200);
  first_done.open();
  first.rest();
  const auto ended = Clock::now();
  second.rest();
  CHECK(ms_between(ended, Clock::now()) < 2000);
  CHECK(joined(two.world.database.wait_for_rows("app", 4)) == "user:first|assistant:re-first|user:second|assistant:re-second");
  CHECK(contents_sent(*two.world.ollama.wait_for_request("second")) == "first,re-first,second,");
}

TEST_CASE("a request that has waited --turn-wait for another chatterd's turn is 409 and nothing is stored (3.13)", "[shared]") {
  Two two({"--turn-wait", "0.5"});
  const Gate done;
  two.world.ollama.answer_with(echo("first", done));
  Stream first(two.world.endpoint, chat_body("app", "first"));
  first.events(2);
  const auto before = Clock::now();
  check_error(two.post_second("/llmchat/", chat_body("app", "second")), 409);
  const double waited = ms_between(before, Clock::now());
  CHECK(waited >= 490);
  CHECK(waited < 2500);
  check_error(two.post_second("/llmprep/", prep_body("app")), 409);
  CHECK(joined(two.world.database.conversation("app")) == "user:first");
  // Neither has kept a first right to the next turn, for which others would have to wait.
  CHECK(two.world.database.value("SELECT count(*) FROM chatterd_turns WHERE next IS NOT NULL") == "0");
  done.open();
  first.rest();
  CHECK(two.post_second("/llmchat/", chat_body("app", "third")).status() == 200);
  CHECK(joined(two.world.database.wait_for_rows("app", 4)) == "user:first|assistant:re-first|user:third|assistant:re-third");
}

TEST_CASE("llmprep waits for a turn on another chatterd and then replaces all of it, the reply too (3.13)", "[shared]") {
  Two two;
  const Gate done;
  two.world.ollama.answer_with(echo("first", done));
  Stream first(two.world.endpoint, chat_body("app", "first"));
  first.events(2);
  Connection prep(two.endpoint);
  prep.send(bytes_of({"POST", "/llmprep/", prep_body("app"), {}}));
  CHECK(prep.stays_silent(300));
  done.open();
  first.rest();
  CHECK(prep.read_response().body == "{}");
  CHECK(joined(two.world.database.conversation("app")) == "system:new");
  // It has left no turn behind.
  const auto before = Clock::now();
  CHECK(two.world.post("/llmchat/", chat_body("app", "next")).status() == 200);
  CHECK(two.post_second("/llmprep/", prep_body("app")).status() == 200);
  CHECK(ms_between(before, Clock::now()) < 3000);
}

TEST_CASE("a turn without a reply is over for the other chatterd at once, however it ended (3.13)", "[shared]") {
  Two two;
  const std::vector<Script> endings = {
      [](Conn& conn) { conn.fin(); },
      answer_document(404, error_line("no such model")),
      [](Conn& conn) {
        conn.stream_head();
        conn.fin();
      }};
  const auto before = Clock::now();
  for (const Script& script : endings) {
    two.world.ollama.answer_with(script);
    two.world.post("/llmchat/", chat_body("app", "x"));
    two.world.ollama.answer_with(echo());
    CHECK(two.post_second("/llmchat/", chat_body("app", "y")).status() == 200);
  }
  two.world.ollama.answer_with([](Conn& conn) { conn.wait_until_client_leaves(); });
  {
    Stream leaver(two.world.endpoint, chat_body("app", "left"));
    two.world.ollama.wait_for_request("left");
  }
  two.world.ollama.answer_with(echo());
  CHECK(two.post_second("/llmchat/", chat_body("app", "y")).status() == 200);
  CHECK(ms_between(before, Clock::now()) < 10000);
}

TEST_CASE("a client that leaves while it waits for another chatterd's turn is not served (3.12)", "[shared]") {
  Two two;
  const Gate done;
  two.world.ollama.answer_with(echo("first", done));
  Stream first(two.world.endpoint, chat_body("app", "first"));
  first.events(2);
  {
    Stream leaver(two.endpoint, chat_body("app", "left"));
    CHECK(leaver.connection.stays_silent(200));
  }
  CHECK_FALSE(two.second->wait_for_log({"status=499"}).empty());
  done.open();
  first.rest();
  CHECK(two.post_second("/llmchat/", chat_body("app", "next")).status() == 200);
  CHECK(joined(two.world.database.wait_for_rows("app", 4)) == "user:first|assistant:re-first|user:next|assistant:re-next");
}

TEST_CASE("a chatterd that is stopped sends those away at once that wait for another's turn (3.13)", "[shared]") {
  Two two;
  const Gate done;
  two.world.ollama.answer_with(echo("first", done));
  Stream first(two.world.endpoint, chat_body("app", "first"));
  first.events(2);
  Connection waiting(two.endpoint);
  waiting.send(bytes_of({"POST", "/llmchat/", chat_body("app", "second"), {}}));
  CHECK(waiting.stays_silent(200));
  two.second->signal(SIGTERM);
  CHECK(waiting.read_response(3000).status() == 503);
  CHECK(two.second->wait_exit(kPatienceMs) == 0);
  done.open();
  first.rest();
}

TEST_CASE("a chatterd with many requests for a conversation does not keep it to itself (3.13)", "[shared]") {
  Two two;
  two.world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    conn.line(token_line("x"));
    conn.pause(150);
    conn.line(done_line());
    conn.end_chunks();
  });
  std::vector<std::unique_ptr<Stream>> queue;
  for (int i = 0; i < 20; ++i) queue.push_back(std::make_unique<Stream>(two.world.endpoint, chat_body("app", "many")));
  queue.front()->events(1);
  CHECK(two.post_second("/llmchat/", chat_body("app", "one")).status() == 200);
  const auto rows = two.world.database.conversation("app");
  CHECK(rows.size() < 20);
  for (const auto& stream : queue) stream->rest();
}

TEST_CASE("no database connection is in use while turns of several chatterds run (3.14)", "[shared]") {
  Two two({"--db-pool", "1"});
  const Gate done;
  two.world.ollama.answer_with(echo("x", done));
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 6; ++i) {
    streams.push_back(std::make_unique<Stream>(two.endpoint_of(i), chat_body("app" + std::to_string(i), "x")));
    streams.back()->events(2);
  }
  CHECK(two.world.database.value("SELECT count(*) FROM chatterd_turns WHERE until > now()") == "6");
  CHECK(two.world.database.value("SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND usename = $2 AND state <> 'idle'",
                                 {two.world.database.name(), Database::owner()}) == "0");
  CHECK(two.world.database.value("SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE datname = $1 AND usename = $2",
                                 {two.world.database.name(), Database::owner()}) == "0");
  CHECK(two.world.get("/getchatts/").status() == 200);
  done.open();
  for (const auto& stream : streams) stream->rest();
  CHECK(two.world.database.value("SELECT count(*) FROM chatterd_turns WHERE until > now()") == "0");
}

TEST_CASE("a killed chatterd's conversation is free within 15 s; a running stream keeps its own (3.13)", "[shared]") {
  Two two;
  const Gate done;
  two.world.ollama.answer_with(echo("first", done));
  Stream kept(two.endpoint, chat_body("kept", "first"));
  kept.events(2);
  const auto third = two.start({"--turn-wait", "0.3"});
  const Endpoint third_endpoint = third->wait_until_ready();
  Stream lost(third_endpoint, chat_body("lost", "first"));
  lost.events(2);
  third->signal(SIGKILL);
  REQUIRE(third->wait_exit(kPatienceMs).has_value());
  const auto died = Clock::now();
  // --turn-wait is longer than that.
  Stream next(two.endpoint, chat_body("lost", "next"));
  next.expect_ok(30'000);
  next.rest();
  CHECK(ms_between(died, Clock::now()) > 5000);
  CHECK(ms_between(died, Clock::now()) < 17000);
  CHECK(joined(two.world.database.wait_for_rows("lost", 3)) == "user:first|user:next|assistant:re-next");
  // The other stream is as old by now, and longer than a turn lasts without being renewed.
  const auto fourth = two.start({"--turn-wait", "1.5"});
  const Endpoint fourth_endpoint = fourth->wait_until_ready();
  check_error(exchange(fourth_endpoint, {"POST", "/llmchat/", chat_body("kept", "next"), {}}), 409);
  done.open();
  kept.rest();
  CHECK(exchange(fourth_endpoint, {"POST", "/llmchat/", chat_body("kept", "next"), {}}).status() == 200);
  CHECK(joined(two.world.database.wait_for_rows("kept", 4)) == "user:first|assistant:re-first|user:next|assistant:re-next");
  CHECK(fourth->stop() == 0);
}

TEST_CASE("a killed chatterd's conversation is free once it starts again, or another that shares its state folder (3.13)", "[shared]") {
  for (const bool same_again : {true, false}) {
    INFO(same_again);
    Two two;
    const TempFolder state;
    const Arguments sharing{"--state-dir", state.file("replies"), "--user", "root", "--turn-wait", "0.3"};
    const Gate done;
    two.world.ollama.answer_with(echo("first", done));
    Stream kept(two.endpoint, chat_body("kept", "first"));
    kept.events(2);
    auto killed = two.start(sharing);
    const Endpoint killed_endpoint = killed->wait_until_ready();
    Stream lost(killed_endpoint, chat_body("lost", "first"));
    lost.events(2);
    std::unique_ptr<Chatterd> other = same_again ? nullptr : two.start(sharing);
    if (other) other->wait_until_ready();
    killed->signal(SIGKILL);
    REQUIRE(killed->wait_exit(kPatienceMs).has_value());
    const auto died = Clock::now();
    if (same_again) other = two.start(sharing);
    Stream next(two.endpoint, chat_body("lost", "next"));
    next.expect_ok(30'000);
    next.rest();
    // A chatterd that starts looks at once, one that runs every 10 s; by itself a turn is over after 15 s.
    CHECK(ms_between(died, Clock::now()) < (same_again ? 5000 : 14'000));
    // What lives keeps its own.
    check_error(exchange(other->wait_until_ready(), {"POST", "/llmchat/", chat_body("kept", "next"), {}}), 409);
    done.open();
    kept.rest();
    CHECK(other->stop() == 0);
    CHECK(joined(two.world.database.wait_for_rows("lost", 3)) == "user:first|user:next|assistant:re-next");
  }
}

TEST_CASE("the reply of a chatterd that has lost its turn is still stored behind its own prompt (db.hpp)", "[shared]") {
  Two two;
  const Gate done;
  two.world.ollama.answer_with(echo("first", done));
  Stream first(two.world.endpoint, chat_body("app", "first"));
  first.events(2);
  lose_turn(two.world, "app");
  CHECK(two.post_second("/llmchat/", chat_body("app", "second")).status() == 200);
  done.open();
  first.rest();
  CHECK(joined(two.world.database.wait_for_rows("app", 4)) == "user:first|assistant:re-first|user:second|assistant:re-second");
}

TEST_CASE("the reply of a chatterd that has lost its turn to an llmprep is not stored (db.hpp)", "[shared]") {
  Two two;
  const Gate done;
  two.world.ollama.answer_with(echo("first", done));
  Stream first(two.world.endpoint, chat_body("app", "first"));
  first.events(2);
  lose_turn(two.world, "app");
  CHECK(two.post_second("/llmprep/", prep_body("app")).status() == 200);
  done.open();
  first.rest();
  CHECK(joined(two.world.database.conversation("app")) == "system:new");
}

TEST_CASE("what a killed chatterd has left in the shared state folder is stored by another one (3.11)", "[shared]") {
  // Either by one that runs, or, where it has given up being root and can't, by the next one that starts.
  for (const bool by_running_one : {true, false}) {
    INFO(by_running_one);
    const TempFolder state;
    Arguments arguments{"--state-dir", state.file("replies"), "--store-retry", "0.3"};
    if (by_running_one) arguments.insert(arguments.end(), {"--user", "root"});
    World world({arguments, {}, true, true});
    world.expect_errors();
    Arguments others = usual_arguments(world.database.conninfo(world.database_proxy->port()), world.ollama.url());
    others.insert(others.end(), arguments.begin(), arguments.end());
    Chatterd second(others);
    const Endpoint endpoint = second.wait_until_ready();
    const Gate done;
    world.ollama.answer_with(echo("first", done));
    Stream first(endpoint, chat_body("app", "first"));
    first.events(2);
    world.database_proxy->outage();
    done.open();
    CHECK_FALSE(second.wait_for_log({"event=reply_spooled"}).empty());
    second.signal(SIGKILL);
    REQUIRE(second.wait_exit(kPatienceMs).has_value());
    world.database_proxy->pass();
    std::unique_ptr<Chatterd> third;
    if (!by_running_one) {
      world.stop();
      third = std::make_unique<Chatterd>(others);
      third->wait_until_ready();
    }
    // Another's files are looked for every 10 s.
    REQUIRE(eventually([&] { return world.database.conversation("app").size() == 2; }, 25'000));
    CHECK(joined(world.database.conversation("app")) == "user:first|assistant:re-first");
    if (third) CHECK(third->stop() == 0);
  }
}
