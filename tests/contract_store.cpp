// Contract sections 3.2 and 3.3: what is stored before Ollama is called, and what a failing database means.
#include <nlohmann/json.hpp>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

std::string body_with(const std::string& app, const std::vector<std::string>& contents) {
  std::string all;
  for (const std::string& content : contents) {
    all += (all.empty() ? "" : ",") + (R"({"role":"user","content":)" + json_string(content)) + "}";
  }
  return R"({"appID":")" + app + R"(","model":"m","messages":[)" + all + "]}";
}

// A trigger that fails for rows whose message is `message`.
std::string failing_trigger(const std::string& message, const std::string& sqlstate, const std::string& when = "true") {
  return "CREATE FUNCTION fail_" + sqlstate + "() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.message = '" +
         message + "' AND " + when + " THEN RAISE EXCEPTION 'secret detail' USING ERRCODE = '" + sqlstate +
         "'; END IF; RETURN NEW; END$$; CREATE TRIGGER fail_" + sqlstate + " BEFORE INSERT ON chatts FOR EACH ROW "
         "EXECUTE FUNCTION fail_" + sqlstate + "()";
}

}  // namespace

TEST_CASE("the prompt is stored before Ollama is called (3.2)", "[store]") {
  const Shared world;
  const std::string app = fresh_app(), mark = fresh_mark();
  const Gate checked;
  world->ollama.answer_with(answer_then_wait({}, checked));
  Stream stream(world->endpoint, chat_body(app, mark));
  world->ollama.wait_for_request(mark);
  CHECK(joined(world->database.conversation(app)) == "user:" + mark);
  CHECK(world->database.value("SELECT count(*) FROM chatts WHERE appid = $1 AND id IS NOT NULL AND time IS NOT NULL", {app}) == "1");
  checked.open();
  stream.rest();
}

TEST_CASE("the history is in the order in which messages arrived, however many (3.2)", "[store]") {
  const Shared world;
  const std::string app = fresh_app();
  std::vector<std::string> contents;
  std::string expected;
  for (int i = 0; i < 300; ++i) {
    contents.push_back("p" + std::to_string(i));
    expected += contents.back() + ",";
  }
  const std::string mark = fresh_mark();
  contents.push_back(mark);
  CHECK(world->post("/llmchat/", body_with(app, contents)).status() == 200);
  CHECK(contents_sent(*world->ollama.wait_for_request(mark)) == expected + mark + ",");
  const std::string next = fresh_mark();
  CHECK(world->post("/llmchat/", chat_body(app, next)).status() == 200);
  CHECK(contents_sent(*world->ollama.wait_for_request(next)) == expected + mark + ",Hello, world," + next + ",");
}

TEST_CASE("inserting and reading the history is one round trip, however many messages (3.2)", "[store]") {
  World world({{"--db-pool", "1"}, {}, true, true});
  world.ollama.answer_with(answer_tokens({"ok"}));
  world.chat(chat_body("app", "the connection is made and its statements prepared"));
  world.database.wait_for_rows("app", 2);
  std::vector<std::string> contents;
  for (int i = 0; i < 30; ++i) contents.push_back("p" + std::to_string(i));
  const Gate counted;
  world.ollama.answer_with(answer_then_wait({}, counted));
  const int before = world.database_proxy->round_trips();
  Stream stream(world.endpoint, body_with("app", contents));
  world.ollama.wait_for_request("p29");
  CHECK(world.database_proxy->round_trips() == before + 1);
  counted.open();
  stream.rest();
}

TEST_CASE("rows with equal timestamps keep their order, also after an update (3.2)", "[store]") {
  const Shared world;
  const std::string app = fresh_app();
  std::vector<std::string> contents;
  std::string expected;
  for (int i = 0; i < 50; ++i) contents.push_back("t" + std::to_string(i));
  for (const std::string& content : contents) expected += content + ",";
  world->post("/llmchat/", body_with(app, contents));
  world->database.run("UPDATE chatts SET time = '2025-01-01' WHERE appid = $1", {app});
  world->database.run("UPDATE chatts SET name = name WHERE appid = $1 AND message < 't3'", {app});
  const std::string mark = fresh_mark();
  world->post("/llmchat/", chat_body(app, mark));
  CHECK(contents_sent(*world->ollama.wait_for_request(mark)) == expected + "Hello, world," + mark + ",");
}

TEST_CASE("the history holds rows that other programs inserted meanwhile (3.2)", "[store]") {
  const Shared world;
  const std::string app = fresh_app(), mark = fresh_mark();
  world->post("/llmchat/", chat_body(app, "one"));
  world->database.run("INSERT INTO chatts (name, message, id, appid) VALUES ('user', 'from outside', gen_random_uuid(), $1)", {app});
  world->post("/llmchat/", chat_body(app, mark));
  CHECK(contents_sent(*world->ollama.wait_for_request(mark)) == "one,Hello, world,from outside," + mark + ",");
}

TEST_CASE("what another program adds right behind the prompt is sent once, and the prompt once, as the last (3.4)", "[store]") {
  World world;
  // Within the prompt's own statement: so it is there when the history is read.
  world.database.run(
      "CREATE FUNCTION add_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
      " INSERT INTO chatts (name, message, appid) VALUES ('user', 'from outside', NEW.appid); RETURN NULL; END $$");
  world.database.run("CREATE TRIGGER add_row AFTER INSERT ON chatts FOR EACH ROW WHEN (NEW.message = 'prompt') EXECUTE FUNCTION add_row()");
  world.post("/llmchat/", chat_body("app", "prompt"));
  CHECK(contents_sent(*world.ollama.wait_for_request("prompt")) == "from outside,prompt,");
}

TEST_CASE("a value that the database refuses is 400, nothing is stored and Ollama is not called (3.3)", "[store]") {
  World world;
  world.database.run("ALTER TABLE chatts ADD CHECK (message <> 'forbidden')");
  world.database.run(failing_trigger("class 22", "22000"));
  check_error(world.post("/llmchat/", body_with("app", {"fine", "forbidden"})), 400);
  check_error(world.post("/llmchat/", body_with("app", {"fine", "class 22", "fine"})), 400);
  CHECK(world.database.conversation("app").empty());
  CHECK(world.ollama.exchanges().empty());
  world.ollama.answer_with(answer_tokens({"ok"}));
  CHECK(world.post("/llmchat/", body_with("app", {"fine"})).status() == 200);
}

TEST_CASE("any other failure of the database is 500 without its text (3.3)", "[store]") {
  World world;
  world.expect_errors();
  world.database.run(failing_trigger("odd", "P0001"));
  const Response response = world.post("/llmchat/", body_with("app", {"fine", "odd"}));
  check_error(response, 500);
  CHECK(response.body.find("secret detail") == std::string::npos);
  CHECK(world.database.conversation("app").empty());
  world.database.run("ALTER TABLE chatts RENAME TO gone");
  check_error(world.post("/llmchat/", body_with("app", {"x"})), 500);
  CHECK(world.ollama.exchanges().empty());
}

TEST_CASE("a serialization failure is tried again (3.3)", "[store]") {
  World world;
  world.ollama.answer_with(answer_tokens({"ok"}));
  // A sequence keeps its value when its transaction fails: only the first try does.
  world.database.run("CREATE SEQUENCE tries; GRANT ALL ON SEQUENCE tries TO " + Database::owner() + ";" +
                     failing_trigger("unlucky", "40001", "nextval('tries') = 1"));
  const Response response = world.post("/llmchat/", body_with("app", {"unlucky"}));
  INFO(response.text());
  CHECK(response.status() == 200);
  CHECK(joined(world.database.wait_for_rows("app", 2)) == "user:unlucky|assistant:ok");
}

TEST_CASE("a database that is away is 503 with Retry-After, and back again is 200 (3.3)", "[store]") {
  World world({{}, {}, true, true});
  world.expect_errors();
  world.ollama.answer_with(answer_tokens({"ok"}));
  CHECK(world.post("/llmchat/", chat_body("app", "before")).status() == 200);
  world.database_proxy->outage();
  for (const Request& request : std::vector<Request>{{"POST", "/llmchat/", chat_body("app", "during"), {}},
                                                     {"POST", "/llmprep/", chat_body("app", "during"), {}},
                                                     {"POST", "/postchatt/", R"({"name":"a","message":"b"})", {}},
                                                     {"GET", "/getchatts/", "", {}}}) {
    const Response response = world.send(request);
    INFO(request.path);
    check_error(response, 503);
    CHECK_FALSE(response.head.header("Retry-After").empty());
  }
  CHECK(world.get("/").status() == 200);
  world.database_proxy->pass();
  REQUIRE(eventually([&] { return world.get("/getchatts/").status() == 200; }));
  CHECK(world.post("/llmchat/", chat_body("app", "after")).status() == 200);
  CHECK(joined(world.database.wait_for_rows("app", 4)) == "user:before|assistant:ok|user:after|assistant:ok");
}

TEST_CASE("a database that does not answer in time is 503 within the time for a call (3.3)", "[store]") {
  World world({{"--db-timeout", "0.5"}, {}, true, true});
  world.expect_errors();
  world.ollama.answer_with(answer_tokens({"ok"}));
  CHECK(world.get("/getchatts/").status() == 200);
  world.database_proxy->freeze();
  const auto before = Clock::now();
  const Response response = world.post("/llmchat/", chat_body("app", "frozen"));
  check_error(response, 503);
  CHECK_FALSE(response.head.header("Retry-After").empty());
  CHECK(ms_between(before, Clock::now()) < 4000);
  CHECK(world.get("/").status() == 200);
  world.database_proxy->pass();
  REQUIRE(eventually([&] { return world.get("/getchatts/").status() == 200; }));
  CHECK(world.post("/llmchat/", chat_body("app", "thawed")).status() == 200);
}

TEST_CASE("a server that ended the idle connections costs no request (3.3)", "[store]") {
  World world;
  world.ollama.answer_with(answer_tokens({"ok"}));
  for (int round = 0; round < 8; ++round) {
    CHECK(world.post("/llmchat/", chat_body("app", "x")).status() == 200);
    CHECK(world.get("/getchatts/").status() == 200);
    const std::string others = "FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()";
    world.database.run("SELECT pg_terminate_backend(pid) " + others, {world.database.name()});
    // The signal takes a moment: a backend that still lives when the request comes is another case.
    REQUIRE(eventually([&] { return world.database.value("SELECT count(*) " + others, {world.database.name()}) == "0"; }));
  }
  CHECK(world.post("/llmchat/", chat_body("app", "x")).status() == 200);
  CHECK(world.database.wait_for_rows("app", 18).size() == 18);
}

TEST_CASE("many requests at once are all stored, each conversation in its order (3.2)", "[store]") {
  const Shared world;
  constexpr int kClients = 12, kTurns = 5;
  std::vector<std::string> apps;
  for (int i = 0; i < kClients; ++i) apps.push_back(fresh_app());
  std::atomic<int> failed{0};
  std::vector<std::thread> clients;
  for (const std::string& app : apps) {
    clients.emplace_back([&, app] {
      for (int turn = 0; turn < kTurns; ++turn) {
        try {
          if (world->post("/llmchat/", chat_body(app, std::to_string(turn))).status() != 200) ++failed;
        } catch (const std::exception&) {
          ++failed;
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(failed == 0);
  std::string expected;
  for (int turn = 0; turn < kTurns; ++turn) {
    expected += (turn == 0 ? "" : "|") + ("user:" + std::to_string(turn)) + "|assistant:Hello, world";
  }
  for (const std::string& app : apps) CHECK(joined(world->database.wait_for_rows(app, 2 * kTurns)) == expected);
}
