// Contract section 2: /getchatts/, /postchatt/ and /llmprep/.
#include <nlohmann/json.hpp>
#include <regex>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

nlohmann::json chatts(const World& world) {
  const Response response = world.get("/getchatts/");
  INFO(response.text());
  REQUIRE(response.status() == 200);
  const auto json = nlohmann::json::parse(response.body, nullptr, false);
  REQUIRE(json.is_array());
  for (const auto& row : json) {
    REQUIRE(row.is_array());
    REQUIRE(row.size() == 4);
    for (const auto& field : row) REQUIRE(field.is_string());
  }
  return json;
}

std::string prep_body(const std::string& app, const std::vector<std::pair<std::string, std::string>>& messages) {
  std::string all;
  for (const auto& [role, content] : messages) {
    all += (all.empty() ? "" : ",") + (R"({"role":)" + json_string(role)) + R"(,"content":)" + json_string(content) + "}";
  }
  return R"({"appID":)" + json_string(app) + R"(,"messages":[)" + all + "]}";
}

}  // namespace

TEST_CASE("getchatts is an empty array when nothing was posted (2)", "[chatts]") {
  const World world;
  const Response response = world.get("/getchatts/");
  INFO(response.text());
  CHECK(response.body == "[]");
  CHECK(response.head.header("Content-Type").rfind("application/json", 0) == 0);
}

TEST_CASE("what postchatt takes, getchatts gives, oldest first, as arrays of 4 strings (2)", "[chatts]") {
  const World world;
  const std::string odd = "tab\t quote\" back\\slash \n line, \xf0\x9f\x98\x80 and \xc3\xa9 </script> \x01";
  const Response posted = world.post("/postchatt/", R"({"name":"first","message":)" + json_string(odd) + "}");
  INFO(posted.text());
  CHECK(posted.status() == 200);
  CHECK(posted.body == "{}");
  CHECK(posted.head.header("Content-Type").rfind("application/json", 0) == 0);
  CHECK(world.post("/postchatt", R"({"username":"second","message":""})").body == "{}");
  CHECK(world.post("/postchatt/", R"({"name":"third","message":"x","extra":[1]})").body == "{}");
  const auto rows = chatts(world);
  REQUIRE(rows.size() == 3);
  CHECK(rows[0][0] == "first");
  CHECK(rows[0][1] == odd);
  CHECK(rows[1][0] == "second");
  CHECK(rows[1][1] == "");
  CHECK(rows[2][0] == "third");
  for (const auto& row : rows) CHECK(is_rfc4122(row[2].get<std::string>()));
  CHECK(rows[0][2] != rows[1][2]);
}

TEST_CASE("getchatts gives large chatts whole and in their place, also many of them (2)", "[chatts]") {
  World world;
  std::vector<std::string> sent;
  for (int i = 0; i < 24; ++i) {
    const size_t size = i % 3 == 0 ? 300'000 : i % 3 == 1 ? 2048 : 2049;
    sent.push_back(std::to_string(i) + std::string(size - std::to_string(i).size(), 'x'));
    REQUIRE(world.post("/postchatt/", "{\"name\":\"n\",\"message\":" + json_string(sent.back()) + "}").status() == 200);
  }
  const auto got = chatts(world);
  REQUIRE(got.size() == sent.size());
  for (size_t i = 0; i < sent.size(); ++i) {
    CHECK(got[i][0] == "n");
    CHECK((got[i][1] == sent[i]));  // in brackets: not shown
  }
}

TEST_CASE("getchatts has neither gap nor repetition where its pages meet (2)", "[chatts]") {
  World world;
  for (const int rows : {999, 1000, 1001, 2000, 2001}) {
    world.database.run("truncate chatts");
    world.database.run("insert into chatts (name, message, id, time) select 'n', g::text, gen_random_uuid(), "
                           "'2026-01-01Z' from generate_series(1, " + std::to_string(rows) + ") g");
    const auto got = chatts(world);
    INFO(rows << " rows");
    REQUIRE(got.size() == static_cast<size_t>(rows));
    bool in_order = true;
    for (int i = 0; i < rows; ++i) in_order = in_order && got[static_cast<size_t>(i)][1] == std::to_string(i + 1);
    CHECK(in_order);
  }
}

TEST_CASE("the time is RFC 3339 in UTC with microseconds, whatever the database's time zone (2)", "[chatts]") {
  World world;
  world.database.run("ALTER DATABASE " + world.database.name() + " SET timezone TO 'America/Detroit'");
  world.database.run("ALTER DATABASE " + world.database.name() + " SET datestyle TO 'German'");
  // Connections made before the change would not show it.
  world.database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> "
                     "pg_backend_pid()", {world.database.name()});
  world.database.run("INSERT INTO chatts (name, message, id, time) VALUES ('a', 'b', gen_random_uuid(), "
                     "'2025-01-02 03:04:05+00'), ('a', 'b', gen_random_uuid(), '2025-07-02 23:04:05.000120-04')");
  const auto rows = chatts(world);
  REQUIRE(rows.size() == 2);
  CHECK((rows[0][3] == "2025-01-02T03:04:05.000000Z" || rows[0][3] == "2025-01-02T03:04:05.000000+00:00"));
  CHECK((rows[1][3] == "2025-07-03T03:04:05.000120Z" || rows[1][3] == "2025-07-03T03:04:05.000120+00:00"));
}

TEST_CASE("the time of a new chatt is now (2)", "[chatts]") {
  World world;
  world.post("/postchatt/", R"({"name":"a","message":"b"})");
  const std::string time = chatts(world)[0][3].get<std::string>();
  static const std::regex rfc3339(R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|\+00:00))");
  INFO(time);
  REQUIRE(std::regex_match(time, rfc3339));
  CHECK(world.database.value("SELECT abs(extract(epoch FROM now() - $1::timestamptz)) < 60", {time}) == "t");
}

TEST_CASE("conversations are not public (2)", "[chatts]") {
  const World world;
  world.post("/llmchat/", chat_body("private", "my secret"));
  world.post("/llmprep/", prep_body("private2", {{"system", "another secret"}}));
  world.post("/postchatt/", R"({"name":"public","message":"hello"})");
  const auto rows = chatts(world);
  REQUIRE(rows.size() == 1);
  CHECK(rows[0][0] == "public");
}

TEST_CASE("a postchatt that the database refuses is 400, one it fails at otherwise 500 (3.3)", "[chatts]") {
  World world;
  world.expect_errors();
  world.database.run("ALTER TABLE chatts ADD CHECK (message <> 'forbidden')");
  check_error(world.post("/postchatt/", R"({"name":"a","message":"forbidden"})"), 400);
  check_error(world.post("/llmprep/", prep_body("a", {{"user", "forbidden"}})), 400);
  CHECK(world.post("/postchatt/", R"({"name":"a","message":"allowed"})").status() == 200);
  world.database.run("ALTER TABLE chatts RENAME TO gone");
  check_error(world.post("/postchatt/", R"({"name":"a","message":"x"})"), 500);
  check_error(world.get("/getchatts/"), 500);
}

TEST_CASE("llmprep puts its messages in the place of the conversation and nothing else (2)", "[chatts]") {
  const Shared world;
  const std::string app = fresh_app(), other = fresh_app();
  world->post("/llmchat/", chat_body(other, "stays"));
  world->post("/llmchat/", chat_body(app, "goes"));
  const Response response = world->post("/llmprep/", prep_body(app, {{"system", "Be  brief"}, {"user", "a"}, {"user", "a"}}));
  INFO(response.text());
  CHECK(response.status() == 200);
  CHECK(response.body == "{}");
  CHECK(joined(world->database.conversation(app)) == "system:Be  brief|user:a|user:a");
  CHECK(world->database.conversation(other).size() == 2);
  for (const Row& row : world->database.run("SELECT id FROM chatts WHERE appid = $1", {app})) CHECK(is_rfc4122(row[0]));
}

TEST_CASE("llmprep with no messages empties the conversation (2)", "[chatts]") {
  const Shared world;
  for (const char* rest : {R"("messages":[])", R"("messages":null)", R"("model":"m")"}) {
    const std::string app = fresh_app();
    world->post("/llmprep/", prep_body(app, {{"user", "goes"}}));
    REQUIRE(world->database.conversation(app).size() == 1);
    const Response response = world->post("/llmprep/", R"({"appID":")" + app + "\"," + rest + "}");
    INFO(rest << " -> " << response.text());
    CHECK(response.body == "{}");
    CHECK(world->database.conversation(app).empty());
  }
}

TEST_CASE("llmprep deletes and stores both or neither (2)", "[chatts]") {
  World world;
  world.database.run("ALTER TABLE chatts ADD CHECK (message <> 'forbidden')");
  world.post("/llmprep/", prep_body("app", {{"system", "old"}}));
  check_error(world.post("/llmprep/", prep_body("app", {{"user", "new"}, {"user", "forbidden"}})), 400);
  CHECK(joined(world.database.conversation("app")) == "system:old");
}

TEST_CASE("what llmprep stored is the history of the next chat, in its order (2)", "[chatts]") {
  const Shared world;
  const std::string app = fresh_app(), mark = fresh_mark();
  world->post("/llmprep/", prep_body(app, {{"system", "s"}, {"user", "1"}, {"assistant", "2"}}));
  world->post("/llmchat/", chat_body(app, mark));
  const auto sent = nlohmann::json::parse(world->ollama.wait_for_request(mark)->request().body);
  std::string order;
  for (const auto& message : sent["messages"]) order += message["content"].get<std::string>() + ",";
  CHECK(order == "s,1,2," + mark + ",");
}

TEST_CASE("llmprep of many messages keeps their order (3.2)", "[chatts]") {
  const Shared world;
  const std::string app = fresh_app();
  std::vector<std::pair<std::string, std::string>> messages;
  std::string expected;
  for (int i = 0; i < 500; ++i) {
    messages.emplace_back("user", std::to_string(i));
    expected += (expected.empty() ? "user:" : "|user:") + std::to_string(i);
  }
  CHECK(world->post("/llmprep/", prep_body(app, messages)).status() == 200);
  CHECK(joined(world->database.conversation(app)) == expected);
}

TEST_CASE("SQL in a value is only text (1.4)", "[chatts]") {
  const Shared world;
  const std::string evil = "x'); DROP TABLE chatts; --";
  CHECK(world->post("/postchatt/", R"({"name":)" + json_string(evil) + R"(,"message":)" + json_string(evil) + "}").status() == 200);
  CHECK(world->post("/llmchat/", chat_body(evil, evil)).status() == 200);
  CHECK(world->database.conversation(evil).size() == 2);
  CHECK(world->database.value("SELECT message FROM chatts WHERE name = $1 AND appid IS NULL", {evil}) == evil);
}
