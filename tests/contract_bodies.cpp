// Contract sections 1.3 to 1.5: what a request's body may be called, how long it may be, how it may come.
#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

constexpr size_t kLimit = 2000;

std::string postchatt_of_size(size_t size) {
  const std::string frame = R"({"name":"size","message":""})";
  return R"({"name":"size","message":")" + std::string(size - frame.size(), 'x') + "\"}";
}

std::string chunked(std::string_view body, size_t chunk_size) {
  std::string text;
  while (!body.empty()) {
    const std::string_view chunk = body.substr(0, chunk_size);
    char size[32];
    std::snprintf(size, sizeof size, "%zx\r\n", chunk.size());
    text.append(size).append(chunk).append("\r\n");
    body.remove_prefix(chunk.size());
  }
  return text + "0\r\n\r\n";
}

Request chunked_post(const std::string& path, const std::string& body, size_t chunk_size) {
  return {"POST", path, chunked(body, chunk_size), {{"Transfer-Encoding", "chunked"}}};
}

Response send_raw(const Endpoint& endpoint, const std::string& bytes) {
  Connection connection(endpoint);
  connection.send(bytes);
  return connection.read_response();
}

}  // namespace

TEST_CASE("Accept and Content-Type are ignored and success is exactly 200 (1.3)", "[bodies]") {
  const Shared world;
  for (const char* type : {"application/json", "text/plain", "application/x-www-form-urlencoded", "image/png", ""}) {
    Headers headers{{"Accept", "image/webp"}};
    if (*type != '\0') headers.emplace_back("Content-Type", type);
    INFO("Content-Type: " << type);
    CHECK(world->send({"POST", "/postchatt/", R"({"name":"a","message":"b"})", headers}).status() == 200);
    CHECK(world->send({"POST", "/llmprep/", R"({"appID":")" + fresh_app() + R"(","messages":[]})", headers}).status() == 200);
    const Response chat = world->send({"POST", "/llmchat/", chat_body(fresh_app(), "x"), headers});
    CHECK(chat.status() == 200);
    CHECK(chat.head.header("Content-Type") == "text/event-stream");
    CHECK(world->send({"POST", "/llmprompt/", R"({"model":"m","prompt":"x"})", headers}).status() == 200);
  }
  CHECK(world->send({"GET", "/getchatts/", "", {{"Accept", "text/html"}}}).status() == 200);
}

TEST_CASE("a body of 300 KB sent as curl -d does works on each POST route (1.3)", "[bodies]") {
  const Shared world;
  const std::string text(300 * 1024, 'k');
  const std::string app = fresh_app();
  const Headers headers{{"Content-Type", "application/x-www-form-urlencoded"}, {"Accept", "*/*"}};
  const Response chat = world->send({"POST", "/llmchat/", chat_body(app, text), headers});
  INFO(chat.text().substr(0, 2000));
  CHECK(chat.status() == 200);
  REQUIRE(world->database.conversation(app).size() == 2);
  CHECK(world->database.conversation(app)[0][1] == text);
  CHECK(world->send({"POST", "/postchatt/", R"({"name":"big","message":")" + text + "\"}", headers}).status() == 200);
  CHECK(world->database.value("SELECT count(*) FROM chatts WHERE message = $1 AND name = 'big'", {text}) == "1");
  const std::string messages = R"(","messages":[{"role":"user","content":")" + text + "\"}]}";
  CHECK(world->send({"POST", "/llmprep/", R"({"appID":")" + app + messages, headers}).status() == 200);
  const std::string prompt = R"({"model":"m","prompt":")" + text + "\"}";
  CHECK(world->send({"POST", "/llmprompt/", prompt, headers}).status() == 200);
  CHECK(world->ollama.exchanges().back()->request().body.find(text) != std::string::npos);
}

TEST_CASE("a form body with percent signs and ampersands is taken as it is (1.3)", "[bodies]") {
  const Shared world;
  const std::string text = "100%41 a=b&c=d+e%";
  const std::string body = R"({"name":"form","message":)" + json_string(text) + "}";
  const Headers headers{{"Content-Type", "application/x-www-form-urlencoded"}};
  CHECK(world->send({"POST", "/postchatt/", body, headers}).status() == 200);
  CHECK(world->database.value("SELECT message FROM chatts WHERE name = 'form'") == text);
}

TEST_CASE("a Content-Encoding is refused with 415 on any path (1.3)", "[bodies]") {
  const Shared world;
  for (const char* encoding : {"gzip", "deflate", "br", "x-unknown"}) {
    INFO(encoding);
    check_error(world->send({"POST", "/llmchat/", "\x1f\x8b\x08 not really", {{"Content-Encoding", encoding}}}), 415);
  }
  check_error(world->send({"POST", "/postchatt/", R"({"name":"z","message":"z"})", {{"Content-Encoding", "gzip"}}}), 415);
  CHECK(world->database.value("SELECT count(*) FROM chatts WHERE name = 'z'") == "0");
}

TEST_CASE("multipart is refused with 415 and the server lives on (1.3)", "[bodies]") {
  const Shared world;
  const std::string body = "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--B--\r\n";
  for (const char* type : {"multipart/form-data; boundary=B", "Multipart/Form-Data; boundary=B", "multipart/mixed"}) {
    INFO(type);
    check_error(world->send({"POST", "/postchatt/", body, {{"Content-Type", type}}}), 415);
  }
  CHECK(world->get("/").status() == 200);
}

TEST_CASE("a POST with neither a length nor chunks is 411 at once (1.3)", "[bodies]") {
  const Shared world;
  const auto before = Clock::now();
  for (const char* path : {"/llmchat/", "/postchatt/", "/llmprep", "/llmprompt/"}) {
    Connection connection(world->endpoint);
    connection.send(bytes_of({"POST", path, "", {}}, false));
    INFO(path);
    check_error(connection.read_response(), 411);
  }
  CHECK(ms_between(before, Clock::now()) < 3000);
}

TEST_CASE("a chunked body is taken, however it is cut (1.3)", "[bodies]") {
  const Shared world;
  for (const size_t size : {size_t{1}, size_t{7}, size_t{4096}}) {
    const std::string app = fresh_app();
    const std::string prompt = "chunks of " + std::to_string(size);
    Request request = chunked_post("/llmchat/", chat_body(app, prompt), size);
    Connection connection(world->endpoint);
    connection.send(bytes_of(request, false));
    const Response response = connection.read_response();
    INFO(response.text());
    CHECK(response.status() == 200);
    REQUIRE_FALSE(world->database.conversation(app).empty());
    CHECK(world->database.conversation(app)[0][1] == prompt);
  }
}

TEST_CASE("an empty body is 422 and not a hang (1.3)", "[bodies]") {
  const Shared world;
  for (const char* path : {"/llmchat/", "/postchatt/", "/llmprep/"}) {
    INFO(path);
    check_error(world->post(path, ""), 422);
  }
}

TEST_CASE("Expect: 100-continue, which curl sends with a large body, is answered (1.3)", "[bodies]") {
  const Shared world;
  const std::string body = R"({"name":"expect","message":"go on"})";
  const std::string bytes = bytes_of({"POST", "/postchatt/", body, {{"Expect", "100-continue"}}});
  Connection connection(world->endpoint);
  connection.send(bytes.substr(0, bytes.size() - body.size()));
  const std::string interim = connection.read_raw(5000).value_or("");
  INFO(interim);
  CHECK(interim.rfind("HTTP/1.1 100", 0) == 0);
  connection.send(body);
  CHECK(connection.read_response().body == "{}");
}

TEST_CASE("a declared body over --max-body is 413 before it is sent, one at the limit is taken (1.5)", "[bodies]") {
  const World world({{"--max-body", std::to_string(kLimit)}});
  CHECK(world.post("/postchatt/", postchatt_of_size(kLimit)).status() == 200);
  Connection connection(world.endpoint);
  connection.send("POST /postchatt/ HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(kLimit + 1) + "\r\n\r\n");
  check_error(connection.read_response(), 413);
  check_error(world.post("/llmchat/", chat_body("a", std::string(kLimit, 'x'))), 413);
  check_error(world.post("/llmprep/", chat_body("a", std::string(kLimit, 'x'))), 413);
  check_error(world.post("/llmprompt/", chat_body("a", std::string(kLimit, 'x'))), 413);
  const Response beyond_64_bits =
      send_raw(world.endpoint, "POST /llmchat/ HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n");
  check_error(beyond_64_bits, beyond_64_bits.status() == 400 ? 400 : 413);
}

TEST_CASE("a chunked body over the limit is 413 as soon as the limit is passed (1.5)", "[bodies]") {
  const World world({{"--max-body", std::to_string(kLimit)}});
  Connection at_limit(world.endpoint);
  at_limit.send(bytes_of(chunked_post("/postchatt/", postchatt_of_size(kLimit), 100), false));
  CHECK(at_limit.read_response().status() == 200);
  // No last chunk: the answer may not wait for it.
  Connection over(world.endpoint);
  const std::string bytes = bytes_of(chunked_post("/postchatt/", postchatt_of_size(kLimit + 1), 100), false);
  over.send(bytes.substr(0, bytes.size() - 5));
  check_error(over.read_response(), 413);
  // One chunk that declares more than the limit, of which only the limit and a little is sent.
  Connection huge(world.endpoint);
  huge.send("POST /llmchat/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n");
  huge.send(std::string(kLimit + 500, 'x'));
  check_error(huge.read_response(), 413);
}

TEST_CASE("reading stops at the limit (1.5)", "[bodies]") {
  const World world({{"--max-body", std::to_string(kLimit)}});
  Connection connection(world.endpoint);
  connection.send("POST /postchatt/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = "10000\r\n" + std::string(65536, 'x') + "\r\n";
  size_t sent = 0;
  // What a kernel buffers on both sides is a few megabytes at most.
  while (sent < (256u << 20) && connection.send(chunk)) sent += chunk.size();
  INFO("bytes taken: " << sent);
  CHECK(sent < (32u << 20));
  CHECK(world.get("/").status() == 200);
}

TEST_CASE("bodies together take no more than --body-memory: who comes too late gets a 503, small ones go on (1.4, 1.5)", "[bodies]") {
  const World world({{"--max-body", "100000", "--body-memory", "100000"}});
  const std::string large = postchatt_of_size(90'000);
  const std::string bytes = bytes_of({"POST", "/postchatt/", large, {}});
  Connection first(world.endpoint);
  first.send(bytes.substr(0, bytes.size() - 1));
  // Until chatterd has read that much, another one has room.
  Response second;
  CHECK(eventually([&] { return (second = world.post("/postchatt/", large)).status() == 503; }));
  check_error(second, 503);
  CHECK(second.head.header("Retry-After") == "2");
  CHECK_FALSE(world.chatterd->wait_for_log({"event=request", "status=503", "limit=body-memory"}).empty());
  CHECK(world.post("/postchatt/", postchatt_of_size(15'000)).status() == 200);
  first.send(bytes.substr(bytes.size() - 1));
  CHECK(first.read_response().status() == 200);
  // The connection stays, and keeps nothing of it.
  CHECK(world.post("/postchatt/", large).status() == 200);
}

TEST_CASE("a body counts for --body-memory until its answer begins, or its client leaves", "[bodies]") {
  World world({{"--max-body", "100000", "--body-memory", "100000"}});
  const Gate gate;
  world.ollama.answer_with(answer_then_wait({"a"}, gate));
  Stream stream(world.endpoint, chat_body(fresh_app(), std::string(90'000, 'x')));
  stream.events(1);
  const std::string large = postchatt_of_size(90'000);
  CHECK(world.post("/postchatt/", large).status() == 200);
  {
    Connection left(world.endpoint);
    const std::string bytes = bytes_of({"POST", "/postchatt/", large, {}});
    left.send(bytes.substr(0, bytes.size() - 1));
    CHECK(eventually([&] { return world.post("/postchatt/", large).status() == 503; }));
  }
  CHECK(eventually([&] { return world.post("/postchatt/", large).status() == 200; }));
  gate.open();
  stream.rest();
}

TEST_CASE("the default limit is 4 MiB (1.5)", "[bodies]") {
  const Shared world;
  constexpr size_t kDefault = 4u << 20;
  CHECK(world->post("/postchatt/", postchatt_of_size(kDefault)).status() == 200);
  Connection connection(world->endpoint);
  connection.send("POST /postchatt/ HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(kDefault + 1) + "\r\n\r\n");
  check_error(connection.read_response(), 413);
}

TEST_CASE("a body that was not read is never taken for the next request (1.5)", "[bodies]") {
  const Shared world;
  const std::string hidden = "GET /getchatts/ HTTP/1.1\r\nHost: localhost\r\n\r\n";
  const std::vector<Request> refused = {
      {"POST", "/nothing", hidden, {}},
      {"PUT", "/llmchat/", hidden, {}},
      {"GET", "/", hidden, {}},
      {"POST", "/llmchat/", hidden, {{"Content-Encoding", "gzip"}}},
      {"POST", "/llmchat/", hidden, {{"Content-Type", "multipart/form-data; boundary=x"}}},
  };
  for (const Request& request : refused) {
    Connection connection(world->endpoint);
    connection.send(bytes_of(request));
    const Response first = connection.read_response();
    INFO(request.method << " " << request.path << " -> " << first.text());
    connection.send(bytes_of({"GET", "/second", "", {}}));
    try {
      const Response second = connection.read_response();
      INFO("then: " << second.text());
      CHECK(second.status() == 404);  // the answer to /second, if the connection was kept
    } catch (const std::runtime_error&) {
      // Closed after the refusal: as good.
    }
  }
}

TEST_CASE("requests whose length is ambiguous are refused with 400 (1.5)", "[bodies]") {
  const Shared world;
  const std::string head = "POST /postchatt/ HTTP/1.1\r\nHost: x\r\n";
  const std::string body = R"({"name":"ambiguous","message":"x"})";
  const std::string length = "Content-Length: " + std::to_string(body.size()) + "\r\n";
  const std::vector<std::string> cases = {
      head + length + "Transfer-Encoding: chunked\r\n\r\n" + chunked(body, 100),
      head + length + "Content-Length: 5\r\n\r\n" + body,
      head + "Content-Length: -5\r\n\r\n" + body,
      head + "Content-Length: 5x\r\n\r\n" + body,
      head + "Transfer-Encoding: chunked\r\n\r\n-2\r\n" + body,
      head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
  };
  for (const std::string& bytes : cases) {
    INFO("sent:\n" << bytes);
    check_error(send_raw(world->endpoint, bytes), 400);
  }
  CHECK(world->database.value("SELECT count(*) FROM chatts WHERE name = 'ambiguous'") == "0");
}

TEST_CASE("a body that ends early stores nothing (1.5)", "[bodies]") {
  const Shared world;
  const std::string app = fresh_app();
  const std::string bytes = bytes_of({"POST", "/llmchat/", chat_body(app, "half"), {}});
  {
    Connection connection(world->endpoint);
    connection.send(bytes.substr(0, bytes.size() - 3));
    connection.close();
  }
  {
    Connection connection(world->endpoint);
    connection.send(bytes.substr(0, bytes.size() - 3));
    connection.reset();
  }
  CHECK(world->get("/").status() == 200);
  CHECK(world->database.conversation(app).empty());
}

TEST_CASE("headers without end are refused and cost the server nothing (1.5)", "[bodies]") {
  const Shared world;
  Connection connection(world->endpoint);
  connection.send("GET / HTTP/1.1\r\nHost: x\r\nX-Long: ");
  const std::string piece(65536, 'h');
  size_t sent = 0;
  while (sent < (64u << 20) && connection.send(piece)) sent += piece.size();
  INFO("bytes taken: " << sent);
  CHECK(sent < (16u << 20));
  CHECK(world->get("/").status() == 200);
}
