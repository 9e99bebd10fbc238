// Contract sections 3.4 and 3.5: what Ollama is sent, and what its refusals become.
#include <nlohmann/json.hpp>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

std::string sent_body(const Shared& world, const std::string& mark) {
  return world->ollama.wait_for_request(mark)->request().body;
}

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("Ollama gets POST /api/chat with model, messages and stream, and no appID (3.4)", "[upstream]") {
  const Shared world;
  const std::string app = fresh_app(), mark = fresh_mark();
  world->chat(chat_body(app, mark));
  const OllamaRequest request = world->ollama.wait_for_request(mark)->request();
  INFO(request.body);
  CHECK(request.method == "POST");
  CHECK(request.path == "/api/chat");
  CHECK(request.header("content-type").rfind("application/json", 0) == 0);
  const auto json = nlohmann::json::parse(request.body);
  CHECK(json == nlohmann::json::parse(R"({"model":"m","stream":true,"messages":[{"role":"user","content":")" + mark + "\"}]}"));
  CHECK_FALSE(holds(request.body, app));
}

TEST_CASE("every other field reaches Ollama byte for byte, in its order (3.4)", "[upstream]") {
  const Shared world;
  const std::string mark = fresh_mark();
  const std::vector<std::string> fields = {
      R"("options":{"temperature":1.0,"zeta":1,"alpha":2,"seed":12345678901234567890,"top_p":1e2,"min_p":-0.0,"x":0.1e-7})",
      R"("format":{"type":"object","required":["b","a"],"properties":{"b":{"type":"integer"},"a":{}}})",
      R"("keep_alive":"5m")",
      R"("think":false)",
      R"("tools":[{"type":"function","function":{"name":"f","description":"\u00e9 é \/ \"q\" \ud83d\ude00"}}])",
      R"("big":123456789012345678901234567890.123456789)",
      R"("nothing":null)",
      R"("app_id":"kept")"};
  std::string more;
  for (const std::string& field : fields) more += "," + field;
  world->chat(chat_body(fresh_app(), mark, more));
  const std::string body = sent_body(world, mark);
  INFO(body);
  size_t at = 0;
  for (const std::string& field : fields) {
    INFO("looked for, after the fields before it: " << field);
    const size_t found = body.find(field, at);
    CHECK(found != std::string::npos);
    if (found != std::string::npos) at = found;
  }
  CHECK(nlohmann::json::accept(body));
}

TEST_CASE("white space inside an extra field is kept (3.4)", "[upstream]") {
  const Shared world;
  const std::string mark = fresh_mark();
  const std::string value = "{ \"a\" :\t[ 1.50 , 2 ],\n \"b\": { } }";
  world->chat(chat_body(fresh_app(), mark, ",\"options\" : " + value));
  INFO(sent_body(world, mark));
  CHECK(holds(sent_body(world, mark), value));
}

TEST_CASE("fields may come in any order, extra ones before appID too (3.4)", "[upstream]") {
  const Shared world;
  const std::string mark = fresh_mark(), app = fresh_app();
  world->chat(R"({"options":{"n":1.0},"messages":[{"content":")" + mark + R"(","role":"user"}],"think":true,"model":"m2","appID":")" +
              app + R"(","stream":true,"keep_alive":-1})");
  const std::string body = sent_body(world, mark);
  INFO(body);
  for (const char* part : {R"("options":{"n":1.0})", R"("think":true)", R"("keep_alive":-1)"}) CHECK(holds(body, part));
  const auto json = nlohmann::json::parse(body);
  CHECK(json["model"] == "m2");
  CHECK(json.size() == 6);
}

TEST_CASE("extra fields of the request's own messages reach Ollama with this request (3.4)", "[upstream]") {
  const Shared world;
  const std::string mark = fresh_mark(), app = fresh_app();
  const std::string images = R"("images":["iVBORw0KGgo=","AAAA"])";
  const std::string calls = R"("tool_calls":[{"function":{"name":"f","arguments":{"n":1.0,"big":12345678901234567890}}}])";
  const std::string body = R"({"appID":")" + app + R"(","model":"m","messages":[{"role":"user","content":")" + mark + "\"," +
                           images + R"(},{"role":"assistant",)" + calls + R"(},{"role":"tool","content":"42","tool_name":"f"}]})";
  world->chat(body);
  const std::string sent = sent_body(world, mark);
  INFO(sent);
  CHECK(holds(sent, images));
  CHECK(holds(sent, calls));
  CHECK(holds(sent, R"("tool_name":"f")"));
  const auto messages = nlohmann::json::parse(sent)["messages"];
  REQUIRE(messages.size() == 3);
  CHECK(messages[0].contains("images"));
  CHECK(messages[1]["role"] == "assistant");
  CHECK(messages[1].contains("tool_calls"));
  CHECK(messages[2]["content"] == "42");
  // The next request has them as history, without what the table does not hold.
  const std::string next = fresh_mark();
  world->chat(chat_body(app, next));
  const auto history = nlohmann::json::parse(sent_body(world, next))["messages"];
  REQUIRE(history.size() == 5);
  CHECK(history[0]["content"] == mark);
  CHECK_FALSE(history[0].contains("images"));
  CHECK(history[3]["role"] == "assistant");
  CHECK(history[4]["content"] == next);
}

TEST_CASE("text survives the way to the database and to Ollama (3.4)", "[upstream]") {
  const Shared world;
  const std::string app = fresh_app(), mark = fresh_mark();
  const std::string text = mark + "  two  spaces \n\t \"q\" \\ \xf0\x9f\x98\x80 \xe2\x80\xa8 \x7f";
  world->chat(chat_body(app, text));
  CHECK(world->database.conversation(app)[0][1] == text);
  CHECK(nlohmann::json::parse(sent_body(world, mark))["messages"][0]["content"] == text);
  const std::string next = fresh_mark();
  world->chat(chat_body(app, next));
  CHECK(nlohmann::json::parse(sent_body(world, next))["messages"][0]["content"] == text);
}

TEST_CASE("an --ollama that ends in /api or in a slash means the same (3.4)", "[upstream]") {
  for (const char* end : {"/api", "/", "/api/"}) {
    ScriptedOllama other;
    other.answer_with(answer_tokens({"ok"}));
    const World world({{"--ollama", other.url() + end}});
    INFO(other.url() + end);
    CHECK(world.post("/llmchat/", chat_body("a", "x")).status() == 200);
    REQUIRE(other.exchanges().size() == 1);
    CHECK(other.exchanges()[0]->request().path == "/api/chat");
    CHECK(world.post("/llmprompt/", R"({"model":"m","prompt":"x"})").status() == 200);
    CHECK(other.exchanges()[1]->request().path == "/api/generate");
  }
}

TEST_CASE("an Ollama that can't be reached is 502 (3.5)", "[upstream]") {
  const Fd nobody = bind_loopback(0);
  World world({{"--ollama", url_of(nobody)}});
  check_error(world.post("/llmchat/", chat_body("app", "x")), 502);
  CHECK(joined(world.database.conversation("app")) == "user:x");
}

TEST_CASE("an Ollama that hangs up before its headers is 502 (3.5)", "[upstream]") {
  const Shared world;
  const std::vector<Script> ends = {[](Conn& conn) { conn.fin(); }, [](Conn& conn) { conn.rst(); },
                                    [](Conn& conn) { conn.raw("HTTP/1.1 200 OK\r\nContent-Ty"); conn.fin(); },
                                    [](Conn& conn) { conn.raw("this is not HTTP\r\n\r\n"); conn.fin(); }};
  for (const Script& script : ends) {
    world->ollama.answer_with(script);
    check_error(world->post("/llmchat/", chat_body(fresh_app(), "x")), 502);
  }
}

TEST_CASE("Ollama's refusals keep 400, 404 and 503 and its text; others are 502 (3.5)", "[upstream]") {
  const Shared world;
  const std::vector<std::pair<int, int>> statuses = {{400, 400}, {404, 404}, {503, 503}, {500, 502},
                                                     {401, 502}, {429, 502}, {501, 502}};
  const std::string text = "model 'no \"such\" m\xc3\xb6" "del' not found\r\nevent: x";
  for (const auto& [theirs, ours] : statuses) {
    world->ollama.answer_with(answer_document(theirs, error_line(text)));
    const std::string app = fresh_app();
    const Response response = world->post("/llmchat/", chat_body(app, "x"));
    INFO("Ollama's status " << theirs << " -> " << response.text());
    CHECK(response.status() == ours);
    CHECK(holds(error_text(response.body), "model 'no \"such\" m\xc3\xb6" "del' not found"));
    CHECK(response.head.header("Retry-After").empty() == (ours != 503));
    CHECK(joined(world->database.conversation(app)) == "user:x");
  }
}

TEST_CASE("a refusal of Ollama that is not its JSON is still one JSON error (3.5)", "[upstream]") {
  const Shared world;
  const std::vector<std::pair<std::string, std::string>> bodies = {
      {"<html><h1>502 Bad Gateway</h1></html>", "text/html"}, {"", "text/plain"}, {"404 page not found", "text/plain"},
      {R"({"message":"no error field"})", "application/json"}, {R"({"error":{"code":7}})", "application/json"},
      {"\xff\xfe not UTF-8", "text/plain"}, {R"(["error"])", "application/json"}};
  for (const auto& [body, type] : bodies) {
    world->ollama.answer_with(answer_document(500, body, type));
    INFO("Ollama said: " << body);
    check_error(world->post("/llmchat/", chat_body(fresh_app(), "x")), 502);
  }
  world->ollama.answer_with(answer_document(404, "<html>nothing</html>", "text/html"));
  check_error(world->post("/llmchat/", chat_body(fresh_app(), "x")), 404);
}

TEST_CASE("a refusal of Ollama that comes chunked or until close is read (3.5)", "[upstream]") {
  const Shared world;
  world->ollama.answer_with([](Conn& conn) {
    conn.stream_head(404, "application/json");
    conn.chunk(R"({"error":"model 'x')");
    conn.chunk(R"( not found"})");
    conn.end_chunks();
  });
  Response response = world->post("/llmchat/", chat_body(fresh_app(), "x"));
  check_error(response, 404);
  CHECK(holds(response.body, "model 'x' not found"));
  world->ollama.answer_with([](Conn& conn) {
    conn.head(400, {{"Connection", "close"}});
    conn.raw(R"({"error":"model is required"})");
    conn.fin();
  });
  response = world->post("/llmchat/", chat_body(fresh_app(), "x"));
  check_error(response, 400);
  CHECK(holds(response.body, "model is required"));
}

TEST_CASE("when Ollama has sent no headers after the grace, the stream begins with 200 (3.5)", "[upstream]") {
  World world({{"--ollama-grace", "0.3"}});
  const Gate loaded;
  world.ollama.answer_with([=](Conn& conn) {
    conn.wait(loaded);
    answer_tokens({"late"})(conn);
  });
  const auto before = Clock::now();
  Stream stream(world.endpoint, chat_body("app", "x"));
  stream.expect_ok();
  CHECK(ms_between(before, Clock::now()) >= 290);
  CHECK(stream.head.header("Content-Type") == "text/event-stream");
  loaded.open();
  const auto events = stream.rest();
  INFO(shown(events));
  REQUIRE(events.size() == 2);
  CHECK(events[0].data == token_line("late"));
  CHECK(joined(world.database.wait_for_rows("app", 2)) == "user:x|assistant:late");
}

TEST_CASE("what goes wrong after the grace is one error event (3.5)", "[upstream]") {
  World world({{"--ollama-grace", "0.2"}});
  world.expect_errors();
  const std::vector<std::pair<Script, std::string>> failures = {
      {answer_document(404, error_line("model 'x' not found")), "model 'x' not found"},
      {answer_document(500, "<html>x</html>", "text/html"), ""},
      {[](Conn& conn) { conn.fin(); }, ""},
      {[](Conn& conn) { conn.rst(); }, ""}};
  for (const auto& [fail, text] : failures) {
    const Gate committed;
    world.ollama.answer_with([committed, end = fail](Conn& conn) {
      conn.wait(committed);
      end(conn);
    });
    const std::string app = fresh_app();
    Stream stream(world.endpoint, chat_body(app, "x"));
    stream.expect_ok();
    committed.open();
    const auto events = stream.rest();
    INFO(shown(events));
    REQUIRE(events.size() == 1);
    CHECK(holds(error_event_text(events[0]), text));
    CHECK(joined(world.database.conversation(app)) == "user:x");
  }
}

TEST_CASE("a kept connection that Ollama has closed meanwhile costs no request (3.5)", "[upstream]") {
  const Shared world;
  for (const bool with_rst : {false, true}) {
    world->ollama.answer_with([=](Conn& conn) {
      answer_tokens({"ok"})(conn);
      with_rst ? conn.rst() : conn.fin();
    });
    for (int i = 0; i < 4; ++i) {
      const Response response = world->post("/llmchat/", chat_body(fresh_app(), "x"));
      INFO(response.text());
      CHECK(response.status() == 200);
      CHECK(response.body == data_events({token_line("ok"), done_line()}));
    }
  }
}

TEST_CASE("a kept connection that dies when it is used again is tried once more on a new one (3.5)", "[upstream]") {
  const Shared world;
  for (const bool with_rst : {false, true}) {
    const auto used = std::make_shared<std::atomic<int>>(0);
    world->ollama.answer_with([=](Conn& conn) {
      // The first request on a connection is answered, a second one kills it.
      if (used->exchange(conn.request().connection) == conn.request().connection) return with_rst ? conn.rst() : conn.fin();
      answer_tokens({"ok"})(conn);
    });
    for (int i = 0; i < 4; ++i) {
      const Response response = world->post("/llmchat/", chat_body(fresh_app(), "x"));
      INFO(response.text());
      CHECK(response.status() == 200);
    }
  }
}

TEST_CASE("while answers are under way a connection to Ollama waits for the next request (ollama.hpp)", "[upstream]") {
  World world;
  const Gate gate;
  world.ollama.answer_with(answer_then_wait({"a"}, gate));
  std::vector<std::unique_ptr<Stream>> streams;
  for (int turn = 0; turn < 3; ++turn) {
    const int connections = world.ollama.connections();
    streams.push_back(std::make_unique<Stream>(world.endpoint, chat_body(fresh_app(), "x")));
    streams.back()->events(1);
    const int connection = world.ollama.exchanges().back()->request().connection;
    if (turn > 0) CHECK(connection == connections);
    CHECK(eventually([&] { return world.ollama.connections() == connection + 1; }));
  }
  gate.open();
}
