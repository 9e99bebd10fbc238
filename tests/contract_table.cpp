// Contract section 4: the table that chatterd makes, finds, brings up to date or may not touch.
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

// As on the course's machines.
const std::string kHandMade =
    "CREATE TABLE chatts (name text, message text, id uuid, time timestamp with time zone DEFAULT CURRENT_TIMESTAMP, "
    "appid varchar(64)); ";
const std::string kOwned = "ALTER TABLE chatts OWNER TO ct_owner; ";

std::string insert_rows(const std::string& app, int from, int to, const std::string& time) {
  return "INSERT INTO chatts (name, message, id, time, appid) SELECT 'user', 'm' || i, gen_random_uuid(), " + time + ", " +
         app + " FROM generate_series(" + std::to_string(from) + ", " + std::to_string(to) + ") AS i; ";
}

std::string numbered(int from, int to) {
  std::string all;
  for (int i = from; i <= to; ++i) all += (i == from ? "user:m" : "|user:m") + std::to_string(i);
  return all;
}

// A program that inserts as the course's other programs do, until it is told to stop.
class Writer {
 public:
  explicit Writer(const Database& database) : connection_(database.connect()) {
    thread_ = std::thread([this] {
      while (!stop_ && error_.empty()) {
        try {
          connection_.run("INSERT INTO chatts (name, message, id, appid) VALUES ('writer', $1, gen_random_uuid(), 'writer')",
                          {std::to_string(written_ + 1)});
          ++written_;
        } catch (const std::exception& error) {
          error_ = error.what();
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
  }
  ~Writer() { stop(); }
  void stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  [[nodiscard]] int written() const { return written_; }
  [[nodiscard]] const std::string& error() const { return error_; }  // after stop()

 private:
  SqlConnection connection_;
  std::atomic<bool> stop_{false};
  std::atomic<int> written_{0};
  std::string error_;
  std::thread thread_;
};

Finished start_as(const Database& database, const std::string& role, const ScriptedOllama& ollama) {
  return run_chatterd(usual_arguments(database.conninfo(0, role), ollama.url()));
}

void let_owner_make_tables(const Database& database, const ScriptedOllama& ollama) {
  Chatterd owner(usual_arguments(database.conninfo(), ollama.url()));
  owner.wait_until_ready();
  CHECK(owner.stop() == 0);
}

}  // namespace

TEST_CASE("where there is no table chatterd makes it at start, with the columns of the contract (4)", "[table]") {
  World world;
  const auto columns = world.database.run(
      "SELECT column_name, data_type, character_maximum_length FROM information_schema.columns WHERE table_name = 'chatts'");
  const std::string all = joined(columns);
  INFO(all);
  for (const char* column : {"name:text:<null>", "message:text:<null>", "id:uuid:<null>",
                             "time:timestamp with time zone:<null>", "appid:character varying:64"}) {
    CHECK(all.find(column) != std::string::npos);
  }
  // Another program leaves the time to the default.
  world.database.run("INSERT INTO chatts (name, message, id, appid) VALUES ('user', 'x', gen_random_uuid(), 'app')");
  CHECK(world.database.value("SELECT now() - time < interval '1 minute' FROM chatts WHERE appid = 'app'") == "t");
}

TEST_CASE("a table with rows made by hand is brought up to date without losing one (4)", "[table]") {
  World world({{}, {}, true, false,
               kHandMade + kOwned + insert_rows("'equal'", 1, 200, "'2024-05-01'::timestamptz") +
                   insert_rows("'null'", 1, 200, "NULL") + insert_rows("NULL", 1, 50, "now()") +
                   insert_rows("'rising'", 1, 200, "'2024-05-01'::timestamptz + i * interval '1 s'") +
                   "INSERT INTO chatts VALUES (NULL, NULL, NULL, NULL, 'nulls')"});
  CHECK(world.database.value("SELECT count(*) FROM chatts") == "651");
  for (const char* app : {"equal", "null", "rising"}) {
    INFO(app);
    CHECK(joined(world.database.conversation(app)) == numbered(1, 200));
  }
  CHECK(world.database.value("SELECT count(*) FROM chatts WHERE time IS NULL") == "201");
  CHECK(nlohmann::json::parse(world.get("/getchatts/").body).size() == 50);
  world.ollama.answer_with(answer_tokens({"ok"}));
  CHECK(world.post("/llmchat/", chat_body("equal", "next")).status() == 200);
  CHECK(joined(world.database.wait_for_rows("equal", 202)) == numbered(1, 200) + "|user:next|assistant:ok");
  CHECK(world.post("/llmchat/", chat_body("nulls", "next")).status() == 200);
}

TEST_CASE("rows with nulls, which a hand-made table takes, are still shown as 4 strings (4)", "[table]") {
  World world({{}, {}, true, false, kHandMade + kOwned +
               "INSERT INTO chatts (name, message, id, time) VALUES (NULL, 'b', gen_random_uuid(), now()), "
               "('a', NULL, gen_random_uuid(), now()), ('a', 'b', NULL, now()), ('a', 'b', gen_random_uuid(), NULL)"});
  const Response response = world.get("/getchatts/");
  INFO(response.text());
  const auto rows = nlohmann::json::parse(response.body, nullptr, false);
  REQUIRE(rows.is_array());
  CHECK(rows.size() == 4);
  for (const auto& row : rows) {
    REQUIRE(row.size() == 4);
    for (const auto& field : row) CHECK(field.is_string());
  }
}

TEST_CASE("another writer inserts during and after the upgrade and loses nothing (4)", "[table]") {
  Database database;
  database.run(kHandMade + kOwned + insert_rows("'old'", 1, 50000, "'2024-05-01'::timestamptz"));
  ScriptedOllama ollama;
  ollama.answer_with(answer_tokens({"ok"}));
  Writer writer(database);
  REQUIRE(eventually([&] { return writer.written() > 20; }));
  Chatterd chatterd(usual_arguments(database.conninfo(), ollama.url()));
  const Endpoint endpoint = chatterd.wait_until_ready();
  const int at_ready = writer.written();
  REQUIRE(eventually([&] { return writer.written() > at_ready + 50; }));
  CHECK(exchange(endpoint, {"POST", "/llmchat/", chat_body("old", "next"), {}}).status() == 200);
  writer.stop();
  INFO("the writer's error: " << writer.error());
  CHECK(writer.error().empty());
  CHECK(database.value("SELECT count(*) FROM chatts") == std::to_string(50000 + 2 + writer.written()));
  const auto rows = database.conversation("writer");
  REQUIRE(rows.size() == static_cast<size_t>(writer.written()));
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i][1] != std::to_string(i + 1)) FAIL("row " << i + 1 << " of the writer is " << rows[i][1]);
  }
  CHECK(chatterd.stop() == 0);
  CHECK(unexpected_lines(chatterd.err(), false) == "");
}

TEST_CASE("an upgrade that another program's open transaction holds up happens once that is over (4)", "[table]") {
  Database database;
  database.run(kHandMade + kOwned + insert_rows("'old'", 1, 10, "now()"));
  ScriptedOllama ollama;
  ollama.answer_with(answer_tokens({"ok"}));
  SqlConnection other = database.connect();
  other.run("BEGIN; INSERT INTO chatts (name, message, id, appid) VALUES ('user', 'm11', gen_random_uuid(), 'old')");
  Chatterd chatterd(usual_arguments(database.conninfo(), ollama.url()));
  // It must not make everyone wait behind it for ever: in the meantime it serves what it can.
  const Endpoint endpoint = chatterd.wait_until_ready();
  CHECK(exchange(endpoint, {"GET", "/getchatts/", "", {}}).status() == 503);
  other.run("COMMIT");
  REQUIRE(eventually([&] { return exchange(endpoint, {"GET", "/getchatts/", "", {}}).status() == 200; }));
  CHECK(joined(database.conversation("old")) == numbered(1, 11));
  CHECK(chatterd.stop() == 0);
}

TEST_CASE("starting again on an up-to-date table changes nothing (4)", "[table]") {
  Database database;
  ScriptedOllama ollama;
  const std::string shape =
      "SELECT string_agg(attname || ' ' || attnum, ',' ORDER BY attnum) || (SELECT string_agg(indexdef, ';' ORDER BY indexdef) "
      "FROM pg_indexes WHERE tablename = 'chatts') || (SELECT relfilenode FROM pg_class WHERE relname = 'chatts') "
      "FROM pg_attribute WHERE attrelid = 'chatts'::regclass AND attnum > 0";
  std::string first;
  for (int start = 0; start < 2; ++start) {
    Chatterd chatterd(usual_arguments(database.conninfo(), ollama.url()));
    chatterd.wait_until_ready();
    const std::string now = database.value(shape);
    if (start == 0) first = now;
    CHECK(now == first);
    CHECK(chatterd.stop() == 0);
  }
}

TEST_CASE("two that start together on a hand-made table both get ready (4)", "[table]") {
  Database database;
  database.run(kHandMade + kOwned + insert_rows("'old'", 1, 20000, "now()"));
  ScriptedOllama ollama;
  Chatterd one(usual_arguments(database.conninfo(), ollama.url())), two(usual_arguments(database.conninfo(), ollama.url()));
  one.wait_until_ready();
  two.wait_until_ready();
  CHECK(joined(database.conversation("old")) == numbered(1, 20000));
  CHECK(one.stop() == 0);
  CHECK(two.stop() == 0);
}

TEST_CASE("four that start together where there is no table all get ready and serve (4)", "[table]") {
  Database database;
  ScriptedOllama ollama;
  ollama.answer_with(answer_tokens({"ok"}));
  std::vector<std::unique_ptr<Chatterd>> all;
  for (int i = 0; i < 4; ++i) all.push_back(std::make_unique<Chatterd>(usual_arguments(database.conninfo(), ollama.url())));
  for (const auto& chatterd : all) {
    const Endpoint endpoint = chatterd->wait_until_ready();
    CHECK(exchange(endpoint, {"POST", "/llmchat/", chat_body("app", "x"), {}}).status() == 200);
  }
  for (const auto& chatterd : all) CHECK(chatterd->stop() == 0);
  CHECK(database.conversation("app").size() == 8);
}

TEST_CASE("a role that may not alter the table: exit 1 and a command that works as it stands (4)", "[table]") {
  const Role role;
  Database database;
  ScriptedOllama ollama;
  database.run(kHandMade + kOwned + insert_rows("'old'", 1, 10, "now()") + "GRANT SELECT, INSERT, DELETE ON chatts TO " +
               role.name());
  const Finished refused = start_as(database, role.name(), ollama);
  INFO(refused.text());
  CHECK(refused.status == 1);
  CHECK(database.value("SELECT count(*) FROM pg_indexes WHERE tablename = 'chatts'") == "0");
  CHECK(refused.err.find("ct_owner") != std::string::npos);
  // The command is shown after "Run: ", to the end of the line; chatterd is on the path as it would be.
  const size_t at = refused.err.find("Run: ");
  REQUIRE(at != std::string::npos);
  std::string command = refused.err.substr(at + 5, refused.err.find('\n', at) - at - 5);
  while (!command.empty() && (command.back() == '"' || command.back() == '.')) command.pop_back();
  const TempFolder folder;
  std::filesystem::create_symlink(std::filesystem::absolute(chatterd_binary()), folder.file("chatterd"));
  const std::string prepared = "PATH=" + folder.file("") + ":$PATH; " + command + " >/dev/null 2>&1";
  INFO("the command: " << command);
  CHECK(std::system(prepared.c_str()) == 0);
  Chatterd chatterd(usual_arguments(database.conninfo(0, role.name()), ollama.url()));
  chatterd.wait_until_ready();
  CHECK(chatterd.stop() == 0);
}

TEST_CASE("a role that may not make the table: exit 1 and it says what to run (4)", "[table]") {
  const Role role;
  Database database;
  ScriptedOllama ollama;
  const Finished refused = start_as(database, role.name(), ollama);
  INFO(refused.text());
  CHECK(refused.status == 1);
  CHECK(refused.err.find("Run: ") != std::string::npos);
  CHECK(refused.err.find("psql") != std::string::npos);
}

TEST_CASE("an up-to-date table is enough for a role that may only select, insert and delete (4)", "[table]") {
  const Role role;
  Database database;
  ScriptedOllama ollama;
  ollama.answer_with(answer_tokens({"ok"}));
  let_owner_make_tables(database, ollama);
  database.run("GRANT SELECT, INSERT, DELETE ON chatts TO " + role.name());
  Chatterd chatterd(usual_arguments(database.conninfo(0, role.name()), ollama.url()));
  const Endpoint endpoint = chatterd.wait_until_ready();
  const auto post = [&](const std::string& path, const std::string& body) {
    const Response response = exchange(endpoint, {"POST", path, body, {}});
    INFO(response.text());
    CHECK(response.status() == 200);
  };
  post("/llmchat/", chat_body("app", "x"));
  post("/postchatt/", R"({"name":"a","message":"b"})");
  CHECK(joined(database.wait_for_rows("app", 2)) == "user:x|assistant:ok");
  post("/llmprep/", R"({"appID":"app","messages":[{"role":"system","content":"new"}]})");
  CHECK(joined(database.conversation("app")) == "system:new");
  CHECK(exchange(endpoint, {"GET", "/getchatts/", "", {}}).status() == 200);
  CHECK(chatterd.stop() == 0);
  CHECK(unexpected_lines(chatterd.err(), false) == "");
}

TEST_CASE("a table of an older chatterd: a role that may not add to it is told a command that works as it stands (4)", "[table]") {
  // Whether or not the table's owner may make a further table beside it.
  for (const bool owner_may_create : {true, false}) {
    const Role role;
    Database database;
    ScriptedOllama ollama;
    ollama.answer_with(answer_tokens({"ok"}));
    let_owner_make_tables(database, ollama);
    database.run("DROP TABLE chatterd_turns; GRANT SELECT, INSERT, DELETE ON chatts TO " + role.name());
    if (!owner_may_create) database.run("ALTER SCHEMA public OWNER TO postgres; REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    const Finished refused = start_as(database, role.name(), ollama);
    INFO(refused.text());
    CHECK(refused.status == 1);
    CHECK(refused.err.find("Run: chatterd --print-schema | ") != std::string::npos);
    CHECK((refused.err.find("ct_owner. Run") != std::string::npos && (refused.err.find("-U ct_owner") != std::string::npos) == owner_may_create));
    if (!owner_may_create) {
      const Finished owner_refused = start_as(database, Database::owner(), ollama);
      INFO(owner_refused.text());
      CHECK(owner_refused.status == 1);
      CHECK(owner_refused.err.find("GRANT USAGE, CREATE ON SCHEMA") != std::string::npos);
      database.run("GRANT CREATE ON SCHEMA public TO ct_owner");
    }
    Chatterd owner(usual_arguments(database.conninfo(), ollama.url()));
    owner.wait_until_ready();
    CHECK(owner.stop() == 0);
    Chatterd chatterd(usual_arguments(database.conninfo(0, role.name()), ollama.url()));
    const Endpoint endpoint = chatterd.wait_until_ready();
    CHECK(exchange(endpoint, {"POST", "/llmchat/", chat_body("app", "x"), {}}).status() == 200);
    CHECK(chatterd.stop() == 0);
  }
}

TEST_CASE("a role without rights on chatts sees and takes no turns in it (docs/security.md)", "[table]") {
  const Role role;
  World world;
  world.ollama.answer_with(answer_tokens({"ok"}));
  CHECK(world.post("/llmchat/", chat_body("app", "x")).status() == 200);
  CHECK(world.database.value("SELECT count(*) FROM chatterd_turns") == "1");
  SqlConnection stranger(world.database.conninfo(0, role.name()));
  CHECK(stranger.run("SELECT * FROM chatterd_turns").empty());
  CHECK(stranger.run("DELETE FROM chatterd_turns RETURNING 1").empty());
  CHECK_THROWS(stranger.run("INSERT INTO chatterd_turns (appid, holder, until) VALUES ('app', gen_random_uuid(), 'infinity')"));
}

TEST_CASE("20 messages out of a table of 1,000,000 rows are read by index, in no time (4)", "[table]") {
  // Made by hand, without an index: the upgrade has to cope with it too.
  World world({{}, {}, true, false,
               kHandMade + kOwned + insert_rows("'app' || i % 49999", 1, 999980, "'2024-05-01'::timestamptz + i * interval '1 s'") +
                   insert_rows("'wanted'", 1, 20, "'2024-05-01'::timestamptz")});
  world.database.run("ANALYZE chatts");
  std::string plan;
  for (const Row& row : world.database.run("EXPLAIN (ANALYZE, BUFFERS) SELECT name, message FROM chatts WHERE appid = 'wanted' ORDER BY seq")) {
    plan += row[0] + "\n";
  }
  INFO(plan);
  // A plain or a bitmap scan of the index, as the planner likes; sorting the 20 rows it finds is no matter.
  CHECK(plan.find("Index Scan") != std::string::npos);
  CHECK(plan.find("Seq Scan") == std::string::npos);
  const size_t at = plan.find("Execution Time: ");
  REQUIRE(at != std::string::npos);
  CHECK(std::strtod(plan.c_str() + at + 16, nullptr) < 20);
  CHECK(joined(world.database.conversation("wanted")) == numbered(1, 20));
  world.ollama.answer_with(answer_tokens({"ok"}));
  const auto before = Clock::now();
  CHECK(world.post("/llmchat/", chat_body("wanted", "mark-million")).status() == 200);
  CHECK(ms_between(before, Clock::now()) < 1500);
  CHECK(contents_sent(*world.ollama.wait_for_request("mark-million")).rfind("m1,m2,m3,", 0) == 0);
}
