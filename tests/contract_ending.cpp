// Contract sections 3.9, 3.10 and 3.12: streams that end early, silence, and clients that leave.
#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

using End = void (*)(Conn&);

// Tokens, then this end as soon as the test has seen them (a reset may throw away unread bytes).
Script tokens_then(const std::vector<std::string>& tokens, const Gate& seen, End end) {
  return [=](Conn& conn) {
    conn.stream_head();
    for (const std::string& token : tokens) conn.line(token_line(token));
    conn.wait(seen);
    end(conn);
  };
}

}  // namespace

TEST_CASE("a stream that ends without done:true gets exactly one error event and a clean end (3.9)", "[ending]") {
  const Shared world;
  const std::vector<std::pair<const char*, End>> ends = {
      {"last chunk", [](Conn& conn) { conn.end_chunks(); }},
      {"FIN", [](Conn& conn) { conn.fin(); }},
      {"RST", [](Conn& conn) { conn.rst(); }},
      {"FIN within a chunk's size", [](Conn& conn) { conn.raw("1"); conn.fin(); }},
      {"not a chunk", [](Conn& conn) { conn.raw("hello\r\n"); conn.fin(); }}};
  for (const auto& [name, end] : ends) {
    INFO("the end: " << name);
    const Gate seen;
    const std::string app = fresh_app();
    world->ollama.answer_with(tokens_then({"par", "tial"}, seen, end));
    Stream stream(world->endpoint, chat_body(app, "x"));
    stream.events(2);
    seen.open();
    const auto events = stream.rest();
    INFO(shown(events));
    REQUIRE(events.size() == 3);
    error_event_text(events[2]);
    CHECK(stream.bytes.find("[DONE]") == std::string::npos);
    CHECK(joined(world->database.wait_for_rows(app, 2)) == "user:x|assistant:partial");
  }
}

TEST_CASE("a stream cut within a line ends in an error event (3.9)", "[ending]") {
  const Shared world;
  const std::vector<End> cuts = {[](Conn& conn) { conn.chunk("{\"message\":{\"content\":\"hal"); conn.fin(); },
                                 [](Conn& conn) { conn.raw("ff\r\n{\"message\":{\"content\":\"hal"); conn.fin(); },
                                 [](Conn& conn) { conn.chunk("{\"message\":{\"content\":\"hal"); conn.rst(); }};
  for (const End cut : cuts) {
    const Gate seen;
    const std::string app = fresh_app();
    world->ollama.answer_with(tokens_then({"whole"}, seen, cut));
    Stream stream(world->endpoint, chat_body(app, "x"));
    stream.events(1);
    seen.open();
    const auto events = stream.rest();
    INFO(shown(events));
    REQUIRE(events.size() >= 2);
    for (size_t i = 1; i < events.size(); ++i) error_event_text(events[i]);
    CHECK(joined(world->database.wait_for_rows(app, 2)) == "user:x|assistant:whole");
  }
}

TEST_CASE("an answer with no line at all gets one error event and no row (3.9)", "[ending]") {
  const Shared world;
  for (const Script& script : {answer_lines({}), answer_document(200, ""), answer_pieces({"\n\n"})}) {
    const std::string app = fresh_app();
    world->ollama.answer_with(script);
    const auto events = world->chat(chat_body(app, "x"));
    INFO(shown(events));
    REQUIRE(events.size() == 1);
    error_event_text(events[0]);
    CHECK(joined(world->database.conversation(app)) == "user:x");
  }
}

TEST_CASE("after done:true a rough end is no error, and no further event follows (3.9)", "[ending]") {
  const Shared world;
  const std::vector<End> ends = {[](Conn& conn) { conn.fin(); }, [](Conn& conn) { conn.end_chunks(); }};
  for (const End end : ends) {
    world->ollama.answer_with([end](Conn& conn) {
      conn.stream_head();
      conn.line(token_line("a"));
      conn.line(done_line());
      end(conn);
    });
    const Response response = world->post("/llmchat/", chat_body(fresh_app(), "x"));
    CHECK(response.body == data_events({token_line("a"), done_line()}));
  }
}

TEST_CASE("an error line of Ollama's that ends its stream is the only error event (3.9)", "[ending]") {
  const Shared world;
  const std::string app = fresh_app();
  world->ollama.answer_with(answer_lines({token_line("so far"), error_line("out of memory")}));
  const Response response = world->post("/llmchat/", chat_body(app, "x"));
  CHECK(response.body == data_events({token_line("so far")}) + "event: error\ndata: { \"error\": \"out of memory\" }\n\n");
  CHECK(joined(world->database.wait_for_rows(app, 2)) == "user:x|assistant:so far");
}

TEST_CASE("an Ollama that falls silent is given up after --ollama-timeout (3.9)", "[ending]") {
  World world({{"--ollama-timeout", "0.4"}});
  world.expect_errors();
  world.ollama.answer_with(answer_then_wait({"then silence"}, Gate()));
  Stream stream(world.endpoint, chat_body("app", "mark-silence"));
  const auto events = stream.rest();
  INFO(shown(events));
  REQUIRE(events.size() == 2);
  error_event_text(events[1]);
  ollama_saw_it_after_ms(*world.ollama.wait_for_request("mark-silence"), Clock::now());
  CHECK(joined(world.database.wait_for_rows("app", 2)) == "user:mark-silence|assistant:then silence");
}

TEST_CASE("an answer without end is cut after --reply-seconds (3.9)", "[ending]") {
  World world({{"--reply-seconds", "0.5"}});
  world.expect_errors();
  world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    for (;;) {
      conn.line(token_line("more "));
      conn.pause(20);
    }
  });
  Stream stream(world.endpoint, chat_body("app", "mark-endless"));
  const auto events = stream.rest();
  REQUIRE(events.size() > 3);
  error_event_text(events.back());
  ollama_saw_it_after_ms(*world.ollama.wait_for_request("mark-endless"), Clock::now());
  CHECK(world.database.wait_for_rows("app", 2)[1][1].rfind("more more ", 0) == 0);
}

TEST_CASE("after --ping-interval without a byte comes a ping comment, again and again (3.10)", "[ending]") {
  World world({{"--ping-interval", "0.15"}});
  const Gate more;
  world.ollama.answer_with(answer_then_wait({"a"}, more));
  Stream stream(world.endpoint, chat_body("app", "x"));
  const std::string start = data_events({token_line("a")});
  stream.read_until(start + ": ping\n\n: ping\n\n: ping\n\n");
  more.open();
  CHECK(stream.rest().size() == 2);
}

TEST_CASE("pings come also while Ollama has not sent a header (3.10)", "[ending]") {
  World world({{"--ping-interval", "0.15", "--ollama-grace", "0.1"}});
  const Gate loaded;
  world.ollama.answer_with([=](Conn& conn) {
    conn.wait(loaded);
    answer_tokens({"a"})(conn);
  });
  Stream stream(world.endpoint, chat_body("app", "x"));
  stream.read_until(": ping\n\n: ping\n\n");
  CHECK(stream.bytes.rfind(": ping\n\n", 0) == 0);
  loaded.open();
  CHECK(stream.rest().size() == 2);
}

TEST_CASE("while lines come often enough there is no ping (3.10)", "[ending]") {
  World world({{"--ping-interval", "1.5"}});
  world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    for (int i = 0; i < 20; ++i) {
      conn.line(token_line("t"));
      conn.pause(100);
    }
    conn.line(done_line());
    conn.end_chunks();
  });
  Stream stream(world.endpoint, chat_body("app", "x"));
  CHECK(stream.rest().size() == 21);
  CHECK(stream.bytes.find("ping") == std::string::npos);
}

TEST_CASE("with --ping-interval 0 there is no ping (3.10)", "[ending]") {
  World world({{"--ping-interval", "0"}});
  world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    conn.line(token_line("t"));
    conn.pause(200);
    conn.line(done_line());
    conn.end_chunks();
  });
  Stream stream(world.endpoint, chat_body("app", "x"));
  CHECK(stream.rest().size() == 2);
  CHECK(stream.bytes.find("ping") == std::string::npos);
}

TEST_CASE("a client that leaves after the first token ends the request to Ollama within a second (3.12)", "[ending]") {
  const Shared world;
  for (const bool with_rst : {false, true}) {
    INFO((with_rst ? "RST" : "FIN"));
    const std::string app = fresh_app(), mark = fresh_mark();
    world->ollama.answer_with(answer_then_wait({"got", " this far"}, Gate()));
    Stream stream(world->endpoint, chat_body(app, mark));
    stream.events(2);
    const auto left = Clock::now();
    with_rst ? stream.connection.reset() : stream.connection.close();
    CHECK(ollama_saw_it_after_ms(*world->ollama.wait_for_request(mark), left) < 1000);
    CHECK(joined(world->database.wait_for_rows(app, 2)) == "user:" + mark + "|assistant:got this far");
  }
}

TEST_CASE("a client that leaves while tokens pour in ends the request as well (3.12)", "[ending]") {
  const Shared world;
  const std::string app = fresh_app(), mark = fresh_mark();
  world->ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    for (;;) conn.line(token_line("pour "));
  });
  Stream stream(world->endpoint, chat_body(app, mark));
  stream.events(5);
  const auto left = Clock::now();
  stream.connection.close();
  CHECK(ollama_saw_it_after_ms(*world->ollama.wait_for_request(mark), left) < 1000);
  CHECK(world->database.wait_for_rows(app, 2).size() == 2);
}

TEST_CASE("a client that leaves before the first token ends the request within a second, no row (3.12)", "[ending]") {
  const Shared world;
  const std::vector<Script> silences = {[](Conn& conn) { conn.wait_until_client_leaves(); },
                                        [](Conn& conn) {
                                          conn.stream_head();
                                          conn.wait_until_client_leaves();
                                        }};
  for (const Script& silence : silences) {
    const std::string app = fresh_app(), mark = fresh_mark();
    world->ollama.answer_with(silence);
    Stream stream(world->endpoint, chat_body(app, mark));
    const auto exchange = world->ollama.wait_for_request(mark);
    const auto left = Clock::now();
    stream.connection.close();
    CHECK(ollama_saw_it_after_ms(*exchange, left) < 1000);
    CHECK(joined(world->database.conversation(app)) == "user:" + mark);
  }
}

TEST_CASE("a client that leaves over plain HTTP is noticed as well (3.12)", "[ending]") {
  World world({{}, {}, false});
  world.ollama.answer_with(answer_then_wait({"a"}, Gate()));
  Stream stream(world.endpoint, chat_body("app", "mark-plain"));
  stream.events(1);
  const auto left = Clock::now();
  stream.connection.close();
  CHECK(ollama_saw_it_after_ms(*world.ollama.wait_for_request("mark-plain"), left) < 1000);
}

TEST_CASE("a client that stops reading is given up after --write-timeout (3.12)", "[ending]") {
  World world({{"--write-timeout", "0.5"}});
  world.expect_errors();
  world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    for (;;) conn.line(token_line(std::string(60000, 'w')));
  });
  Stream stream(world.endpoint, chat_body("app", "mark-stuck"));
  stream.events(1);
  ollama_saw_it_after_ms(*world.ollama.wait_for_request("mark-stuck"), Clock::now());
  CHECK(world.database.wait_for_rows("app", 2).size() == 2);
}
