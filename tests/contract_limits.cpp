// Limits and the edges of HTTP that the contract's sections 1, 3.15 and 7 imply: slow clients, old clients,
// clients that send ahead, answers without measure.
#include "tests/contract_fixture.hpp"
#include "tests/harness/vitals.hpp"

using namespace contract;

namespace {

// How long the server keeps the connection open while the client says nothing more.
double closed_after_ms(Connection& connection) {
  const auto before = Clock::now();
  while (connection.read_raw().has_value()) {
  }
  return ms_between(before, Clock::now());
}

// The same for a client that sends a byte every few milliseconds, which must not stretch its time. An answer
// counts as an end.
double dribbler_borne_ms(const Endpoint& endpoint, const std::string& start) {
  Connection connection(endpoint);
  connection.send(start);
  const auto before = Clock::now();
  while (ms_between(before, Clock::now()) < 6000 && connection.send("a") && connection.stays_silent(20)) {
  }
  return ms_between(before, Clock::now());
}

// A large body, such as a prompt with a photo, and so many clients of a kind that one copy kept for each would show.
constexpr size_t kLargeBytes = 3'000'000;
constexpr size_t kClients = 12;

// Asserts that chatterd takes no more memory than it did, apart from noise. Sanitizers keep what is freed.
void check_memory(const World& world, size_t before_kib) {
  const pid_t pid = world.chatterd->pid();
  if (has_sanitizer(pid)) return;
  const bool is_back = eventually([&] { return memory_kib(pid) < before_kib + kMemoryNoiseKib; });
  CAPTURE(before_kib, memory_kib(pid));
  CHECK(is_back);
}

}  // namespace

TEST_CASE("headers that do not come within --header-timeout end the connection (1)", "[limits]") {
  const World world({{"--header-timeout", "0.4"}});
  Connection silent(world.endpoint);
  silent.send("GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ");
  CHECK(closed_after_ms(silent) < 4000);
  CHECK(dribbler_borne_ms(world.endpoint, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ") < 4000);
  CHECK(world.get("/").status() == 200);
}

TEST_CASE("a body that does not come within --body-timeout ends the request, nothing is stored (1)", "[limits]") {
  World world({{"--body-timeout", "0.4"}});
  const std::string bytes = bytes_of({"POST", "/llmchat/", chat_body("app", std::string(2000, 'x')), {}});
  Connection silent(world.endpoint);
  silent.send(bytes.substr(0, bytes.size() - 1500));
  CHECK(closed_after_ms(silent) < 4000);
  CHECK(dribbler_borne_ms(world.endpoint, bytes.substr(0, bytes.size() - 1500)) < 4000);
  CHECK(world.database.conversation("app").empty());
}

TEST_CASE("a conversation longer than --max-history gets a 413 and grows no more, until it begins anew (3.4)", "[limits]") {
  World world({{"--max-history", "65536"}});
  world.ollama.answer_with(answer_tokens({"a"}));
  const std::string app = fresh_app();
  const std::string prompt(40'000, 'x');
  for (int turn = 0; turn < 2; ++turn) world.chat(chat_body(app, prompt));
  const auto before = world.database.conversation(app);
  REQUIRE(before.size() == 4);
  const size_t asked = world.ollama.exchanges().size();
  // The second one finds that the turn of the first is over.
  for (int turn = 0; turn < 2; ++turn) check_error(world.post("/llmchat/", chat_body(app, "one more")), 413);
  CHECK(world.database.conversation(app) == before);
  CHECK(world.ollama.exchanges().size() == asked);
  CHECK_FALSE(world.chatterd->wait_for_log({"event=request", "status=413", "limit=max-history"}).empty());
  // Another's goes on, and so does this one from its new beginning.
  world.chat(chat_body(fresh_app(), "hello"));
  CHECK(world.post("/llmprep/", R"({"appID":")" + app + R"(","messages":[]})").status() == 200);
  world.chat(chat_body(app, "hello again"));
  CHECK(world.database.conversation(app).size() == 2);
}

TEST_CASE("an idle connection is closed after --idle-timeout (1)", "[limits]") {
  const World world({{"--idle-timeout", "0.4"}});
  Connection connection(world.endpoint);
  connection.send(bytes_of({"GET", "/", "", {}}));
  CHECK(connection.read_response().status() == 200);
  CHECK(closed_after_ms(connection) < 4000);
}

TEST_CASE("idle connections whose time ends together are closed one by one; until then they are still served (1)", "[limits]") {
  const World world({{"--idle-timeout", "0.4"}});
  const std::string ask = bytes_of({"GET", "/", "", {}});
  std::vector<std::unique_ptr<Connection>> clients;
  for (int i = 0; i < 100; ++i) clients.push_back(std::make_unique<Connection>(world.endpoint));
  for (const auto& client : clients) {
    client->send(ask);
    CHECK(client->read_response().status() == 200);
  }
  CHECK(closed_after_ms(*clients[30]) < 4000);
  // The time of the last one is over by now; its turn comes more than a second later.
  clients.back()->send(ask);
  CHECK(clients.back()->read_response().status() == 200);
  for (const auto& client : clients) CHECK(closed_after_ms(*client) < 10'000);
}

TEST_CASE("with all threads at streams a new client still gets its GET / answered, and waits with its next one (1)", "[limits]") {
  World world({{"--threads", "1", "--max-streams", "1"}});
  Gate gate;
  world.ollama.answer_with(answer_then_wait({"a"}, gate));
  Stream stream(world.endpoint, chat_body(fresh_app(), "x"));
  stream.events(1);
  Connection client(world.endpoint);
  const std::string ask = bytes_of({"GET", "/", "", {}});
  client.send(ask + ask);
  CHECK(client.read_response().status() == 200);
  CHECK(client.stays_silent(1));
  gate.open();
  stream.rest();
  CHECK(client.read_response().status() == 200);
}

TEST_CASE("an idle client's request is answered though its end comes right behind (1)", "[limits]") {
  for (const bool tls : {true, false}) {
    CAPTURE(tls);
    const World world({{}, {}, tls});
    Connection client(world.endpoint);
    const std::string ask = bytes_of({"GET", "/", "", {}});
    for (int i = 0; i < 2; ++i) {
      client.send(ask);
      if (i == 1) client.half_close();
      CHECK(client.read_response().status() == 200);
    }
  }
}

TEST_CASE("while an answer streams nothing of its large request is kept in memory (1.5)", "[limits]") {
  World world;
  world.ollama.answer_with(answer_tokens({"ok"}));
  world.chat(chat_body(fresh_app(), "x"));
  const size_t before = memory_kib(world.chatterd->pid());
  const Gate all_sent, checked;
  world.ollama.answer_with([all_sent, checked](Conn& conn) {
    conn.wait(all_sent);
    answer_then_wait({"a"}, checked)(conn);
  });
  const std::string photo = R"(,"photo":")" + std::string(kLargeBytes, 'A') + '"';
  std::vector<std::unique_ptr<Stream>> streams;
  for (size_t i = 0; i < kClients; ++i) streams.push_back(std::make_unique<Stream>(world.endpoint, chat_body(fresh_app(), "x", photo)));
  all_sent.open();
  for (const auto& stream : streams) stream->events(1);
  check_memory(world, before);
  checked.open();
  for (const auto& stream : streams) CHECK(stream->rest().back().data == done_line());
}

TEST_CASE("of an idle client's last request nothing is kept in memory (1.5)", "[limits]") {
  const World world;
  check_error(world.post("/postchatt/", "{}"), 422);
  const size_t before = memory_kib(world.chatterd->pid());
  const std::string request = bytes_of({"POST", "/postchatt/", R"({"photo":")" + std::string(kLargeBytes, 'A') + "\"}", {}});
  std::vector<std::unique_ptr<Connection>> clients;
  for (size_t i = 0; i < kClients; ++i) {
    clients.push_back(std::make_unique<Connection>(world.endpoint));
    clients.back()->send(request);
    check_error(clients.back()->read_response(), 422);
  }
  check_memory(world, before);
  for (const auto& client : clients) {
    client->send(bytes_of({"GET", "/", "", {}}));
    CHECK(client->read_response().status() == 200);
  }
}

TEST_CASE("requests sent ahead are answered in their order, also behind a stream (1)", "[limits]") {
  const Shared world;
  Connection connection(world->endpoint);
  connection.send(bytes_of({"POST", "/llmchat/", chat_body(fresh_app(), "x"), {}}) + bytes_of({"GET", "/", "", {}}) +
                  bytes_of({"GET", "/nothing", "", {}}));
  const Response stream = connection.read_response();
  INFO(stream.text());
  CHECK(stream.body == data_events({token_line("Hello"), token_line(", world"), done_line()}));
  CHECK(connection.read_response().body == "\"EECS Reactive chatterd\"");
  check_error(connection.read_response(), 404);
}

TEST_CASE("bytes that a client sends during its stream are not taken for its leaving (3.12)", "[limits]") {
  const Shared world;
  const Gate more;
  world->ollama.answer_with(answer_then_wait({"a"}, more));
  Stream stream(world->endpoint, chat_body(fresh_app(), "x"));
  stream.events(1);
  stream.connection.send("GET / HT");
  CHECK(stream.connection.stays_silent(300));
  more.open();
  CHECK(stream.rest().size() == 2);
}

TEST_CASE("a client of HTTP/1.0 gets an answer without chunks and a closed connection (1)", "[limits]") {
  const Shared world;
  for (const std::string& request :
       {std::string("GET / HTTP/1.0\r\n\r\n"), "POST /llmchat/ HTTP/1.0\r\nContent-Length: " +
                                                   std::to_string(chat_body("http10", "x").size()) + "\r\n\r\n" + chat_body("http10", "x")}) {
    Connection connection(world->endpoint);
    connection.send(request);
    const Response response = connection.read_response();
    INFO(response.text());
    CHECK(response.status() == 200);
    CHECK(response.head.header("Transfer-Encoding").empty());
    if (request[0] == 'P') CHECK(parse_sse(response.body).size() == 3);
  }
}

TEST_CASE("an answer longer than --max-reply ends in an error event, what came is stored (3.9)", "[limits]") {
  World world({{"--max-reply", "20000"}});
  world.expect_errors();
  world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    for (;;) conn.line(token_line("endless "));
  });
  const auto events = world.chat(chat_body("app", "mark-long"));
  REQUIRE(events.size() > 10);
  error_event_text(events.back());
  CHECK(world.database.wait_for_rows("app", 2)[1][1].rfind("endless endless ", 0) == 0);
  const auto exchange = world.ollama.wait_for_request("mark-long");
  CHECK(eventually([&] { return exchange->client_left().has_value(); }));
}

TEST_CASE("a stream of Ollama's with no line end in it is not kept in memory for ever (3.8)", "[limits]") {
  World world({{"--max-line", "10000"}});
  world.expect_errors();
  world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    for (;;) conn.chunk(std::string(4000, 'x'));
  });
  const auto events = world.chat(chat_body("app", "mark-lineless"));
  REQUIRE_FALSE(events.empty());
  error_event_text(events.back());
  const auto exchange = world.ollama.wait_for_request("mark-lineless");
  CHECK(eventually([&] { return exchange->client_left().has_value(); }));
}

TEST_CASE("headers without measure from Ollama are a 502 (3.5)", "[limits]") {
  const Shared world;
  world->ollama.answer_with([](Conn& conn) {
    conn.raw("HTTP/1.1 200 OK\r\nX-Long: ");
    for (;;) conn.raw(std::string(8000, 'h'));
  });
  check_error(world->post("/llmchat/", chat_body(fresh_app(), "x")), 502);
}

TEST_CASE("an interim answer of Ollama's is passed over (3.5)", "[limits]") {
  const Shared world;
  world->ollama.answer_with([](Conn& conn) {
    conn.raw("HTTP/1.1 102 Processing\r\n\r\n");
    answer_tokens({"ok"})(conn);
  });
  CHECK(world->post("/llmchat/", chat_body(fresh_app(), "x")).body == data_events({token_line("ok"), done_line()}));
}

TEST_CASE("what a client sends that is not HTTP is refused and harms nobody (1)", "[limits]") {
  const Shared world;
  for (const std::string& bytes : {std::string("\r\n\r\n"), std::string("hello\r\n\r\n"), std::string(300, '\0'),
                                   std::string("GET / HTTP/9.9\r\n\r\n"), std::string("GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n"),
                                   std::string("GET / HTTP/1.1\r\nno colon\r\n\r\n"), std::string("\x16\x03\x01\x02\x00")}) {
    Connection connection(world->endpoint);
    connection.send(bytes + "\r\n\r\n");
    try {
      const Response response = connection.read_response(1000);
      INFO(response.text());
      CHECK(response.status() >= 400);
      CHECK(response.status() < 600);
    } catch (const std::runtime_error&) {
      // Closed without a word: as good.
    }
  }
  CHECK(world->get("/").status() == 200);
}
