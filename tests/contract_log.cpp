// The log of the real binary, as docs/operations.md ("Logs") describes it.
#include <nlohmann/json.hpp>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("with --log-format json every line but the address is an object, whatever a client sends", "[log]") {
  World world({.arguments = {"--log-format", "json", "--log-level", "debug"}});
  world.ollama.answer_with(answer_tokens({"Hello"}));
  const Response response = world.get("/x%ff%0a\"y");
  world.chat(chat_body(fresh_app(), "Hi"));
  const std::string id = response.head.header("X-Request-Id");
  REQUIRE_FALSE(world.chatterd->wait_for_log({"/llmchat/"}).empty());
  bool found = false;
  for (const std::string& line : lines_of(world.chatterd->err())) {
    if (line.rfind("listening on ", 0) == 0) continue;
    INFO(line);
    const auto json = nlohmann::json::parse(line);
    REQUIRE(json.is_object());
    CHECK(json["time"].is_string());
    CHECK(json["level"].is_string());
    CHECK(json["event"].is_string());
    if (json.value("id", "") != id) continue;
    found = true;
    CHECK(json["status"] == response.status());
    CHECK(json["ms"].is_number());
  }
  CHECK(found);
}

TEST_CASE("--log-level leaves out what is below it", "[log]") {
  World world({.arguments = {"--log-level", "warning"}});
  CHECK(world.get("/").status() == 200);
  world.ollama.answer_with(answer_document(500, R"({"error":"no"})"));
  CHECK(world.post("/llmchat/", chat_body(fresh_app(), "x")).status() == 502);
  CHECK_FALSE(world.chatterd->wait_for_log({"level=warning", "event=request", "status=502", "reason=\"ollama: status 500\""}).empty());
  CHECK(world.chatterd->err().find("level=info") == std::string::npos);
}

TEST_CASE("the line of a stream says how long Ollama took to its first token", "[log]") {
  World world;
  world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    conn.pause(300);
    conn.line(token_line("late"));
    conn.line(done_line());
    conn.end_chunks();
  });
  world.chat(chat_body(fresh_app(), "x"));
  const std::string line = world.chatterd->wait_for_log({"event=request", "path=/llmchat/", "lines=2"});
  INFO(line);
  const auto number = [&](const std::string& key) { return std::stod(line.substr(line.find(" " + key + "=") + key.size() + 2)); };
  CHECK(number("ollama_ms") >= 290);
  CHECK(number("first_token_ms") >= number("ollama_ms"));
}

TEST_CASE("the database that goes and comes back is said once each, with no request to notice it", "[log]") {
  World world({.arguments = {}, .database_proxy = true});
  world.ollama.answer_with(answer_tokens({"Hello"}));
  world.chat(chat_body(fresh_app(), "x"));
  world.database_proxy->outage();
  for (int i = 0; i < 5; ++i) CHECK(world.post("/postchatt/", R"({"name":"a","message":"b"})").status() == 503);
  REQUIRE_FALSE(world.chatterd->wait_for_log({"level=warning", "event=database_away", "reason="}).empty());
  world.database_proxy->pass();
  REQUIRE_FALSE(world.chatterd->wait_for_log({"level=info", "event=database_back", "away_s="}).empty());
  CHECK(count_of(world.chatterd->err(), "event=database_away") == 1);
  CHECK(count_of(world.chatterd->err(), "event=database_back") == 1);
}

TEST_CASE("Ollama that is away is said once, not for each request", "[log]") {
  Database database;
  const Fd nobody = bind_loopback(0);
  Chatterd chatterd(usual_arguments(database.conninfo(), url_of(nobody)));
  const Endpoint endpoint = chatterd.wait_until_ready();
  for (int i = 0; i < 5; ++i) CHECK(exchange(endpoint, {"POST", "/llmchat/", chat_body(fresh_app(), "x"), {}}).status() == 502);
  CHECK_FALSE(chatterd.wait_for_log({"level=warning", "event=ollama_away", "reason="}).empty());
  CHECK(chatterd.stop() == 0);
  CHECK(count_of(chatterd.err(), "event=ollama_away") == 1);
}

TEST_CASE("an answer that breaks off after its status was sent is a warning with its reason", "[log]") {
  World world;
  world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    conn.line(token_line("a"));
    conn.rst();
  });
  world.chat(chat_body(fresh_app(), "x"));
  const std::string line = world.chatterd->wait_for_log({"level=warning", "event=request", "status=200", "reason="});
  INFO(world.chatterd->err());
  CHECK_FALSE(line.empty());
}

TEST_CASE("a client that leaves is no warning", "[log]") {
  World world;
  world.ollama.answer_with(answer_then_wait({"a"}, Gate()));
  {
    Stream stream(world.endpoint, chat_body(fresh_app(), "x"));
    stream.events(1);
  }
  CHECK_FALSE(world.chatterd->wait_for_log({"level=info", "event=request", "reason=\"the client left\""}).empty());
}
