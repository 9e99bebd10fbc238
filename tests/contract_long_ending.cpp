// Contract sections 3.9 to 3.11 in long answers: ends, limits, pings and the server's stop.
#include <algorithm>
#include <csignal>

#include "tests/long_answers.hpp"

using namespace contract;

namespace {

using End = void (*)(Conn&);

// The events of a stream that ends badly after the many lines; asserts that one error event, and only one,
// says so, and that what came before is stored.
void expect_one_error(World& world, Stream& stream, const std::string& app, const std::string& prompt) {
  const auto events = stream.rest();
  INFO(shown(events));
  REQUIRE(events.size() == kMany + 1);
  error_event_text(events.back());
  CHECK(joined(world.database.wait_for_rows(app, 2)) == "user:" + prompt + "|assistant:" + ManyLines::text());
}

}  // namespace

TEST_CASE("an answer that ends after many lines without done:true gets exactly one error event (3.9, 3.11)", "[long]") {
  const std::vector<std::pair<const char*, End>> ends = {
      {"last chunk", [](Conn& conn) { conn.end_chunks(); }},
      {"FIN", [](Conn& conn) { conn.fin(); }},
      {"RST", [](Conn& conn) { conn.rst(); }},
      {"FIN within a chunk's size", [](Conn& conn) { conn.raw("1"); conn.fin(); }},
      {"not a chunk", [](Conn& conn) { conn.raw("hello\r\n"); conn.wait_until_client_leaves(); }},
      {"FIN within a line", [](Conn& conn) { conn.chunk("{\"message\":{\"content\":\"hal"); conn.fin(); }}};
  for (const bool tls : {true, false}) {
    World world({{}, {}, tls});
    for (const auto& [name, end] : ends) {
      INFO("the end: " << name << (tls ? ", HTTPS" : ", HTTP"));
      const ManyLines many;
      const std::string app = fresh_app();
      world.ollama.answer_with(many.then(end));
      Stream stream(world.endpoint, chat_body(app, "x"));
      many.read(stream);
      expect_one_error(world, stream, app, "x");
    }
  }
}

TEST_CASE("an answer of many lines that ends with its connection is whole if it has its done line (3.9)", "[long]") {
  const Shared world;
  const ManyLines many;
  world->ollama.answer_with([many](Conn& conn) {
    conn.head(200, {{"Content-Type", "application/x-ndjson"}, {"Connection", "close"}});
    for (const std::string& line : ManyLines::lines()) {
      conn.raw(line + "\n");
      conn.pause(5);
    }
    conn.raw(done_line());
    conn.fin();
  });
  const auto events = world->chat(chat_body(fresh_app(), "x"));
  INFO(shown(events));
  REQUIRE(events.size() == kMany + 1);
  CHECK(events.back().data == done_line());
}

TEST_CASE("an Ollama that falls silent after many lines is given up after --ollama-timeout (3.9)", "[long]") {
  World world({{"--ollama-timeout", "1"}});
  world.expect_errors();
  const ManyLines many;
  world.ollama.answer_with(many.then(silence));
  Stream stream(world.endpoint, chat_body("app", "mark-silence"));
  many.read(stream);
  const auto before = Clock::now();
  expect_one_error(world, stream, "app", "mark-silence");
  CHECK(ms_between(before, Clock::now()) >= 900);
  ollama_saw_it_after_ms(*world.ollama.wait_for_request("mark-silence"), Clock::now());
}

TEST_CASE("--ollama-timeout is counted from the last line (3.9)", "[long]") {
  World world({{"--ollama-timeout", "1"}});
  const ManyLines many;
  world.ollama.answer_with(many.then([](Conn& conn) {
    for (int i = 0; i < 6; ++i) {
      conn.pause(300);
      conn.line(token_line("slow"));
    }
    end_well(conn);
  }));
  Stream stream(world.endpoint, chat_body("app", "x"));
  many.read(stream);
  const auto events = stream.rest();
  INFO(shown(events));
  REQUIRE(events.size() == kMany + 7);
  CHECK(events.back().data == done_line());
}

TEST_CASE("an answer of many lines is cut after --reply-seconds, whether lines come or none (3.9)", "[long]") {
  World world({{"--reply-seconds", "2"}});
  world.expect_errors();
  for (const bool lines_come : {true, false}) {
    INFO((lines_come ? "lines come" : "silence"));
    const ManyLines many;
    const std::string app = fresh_app(), mark = fresh_mark();
    world.ollama.answer_with(many.then(pour("more ", lines_come)));
    Stream stream(world.endpoint, chat_body(app, mark));
    many.read(stream);
    const auto events = stream.rest();
    REQUIRE(events.size() >= kMany + 1);
    for (size_t i = kMany; i + 1 < events.size(); ++i) CHECK(events[i].data == token_line("more "));
    error_event_text(events.back());
    ollama_saw_it_after_ms(*world.ollama.wait_for_request(mark), Clock::now());
    check_stored_so_far(world, app, lines_come ? "more " : "");
  }
}

TEST_CASE("an answer of many lines is cut at --max-reply (3.9)", "[long]") {
  World world({{"--max-reply", "20000"}});
  world.expect_errors();
  const ManyLines many;
  world.ollama.answer_with(many.then(pour(std::string(1000, 'm'))));
  Stream stream(world.endpoint, chat_body("app", "mark-large"));
  many.read(stream);
  const auto events = stream.rest();
  REQUIRE(events.size() > kMany + 5);
  CHECK(events.size() < kMany + 25);
  error_event_text(events.back());
  for (size_t i = 0; i + 1 < events.size(); ++i) CHECK(events[i].type == "message");
  ollama_saw_it_after_ms(*world.ollama.wait_for_request("mark-large"), Clock::now());
  CHECK(world.database.wait_for_rows("app", 2).size() == 2);
}

TEST_CASE("after many lines pings come while Ollama says nothing, and again after a line more (3.10)", "[long]") {
  for (const bool tls : {true, false}) {
    INFO((tls ? "HTTPS" : "HTTP"));
    World world({{"--ping-interval", "0.2"}, {}, tls});
    const ManyLines many;
    const Gate pinged, again;
    world.ollama.answer_with(many.then([=](Conn& conn) {
      conn.wait(pinged);
      conn.line(token_line("more"));
      conn.wait(again);
      end_well(conn);
    }));
    Stream stream(world.endpoint, chat_body("app", "x"));
    many.read(stream);
    const std::string pings = "\n\n: ping\n\n: ping\n\n";
    stream.read_until(token_line(ManyLines::token(kMany - 1)) + pings);
    pinged.open();
    stream.read_until(token_line("more") + pings);
    again.open();
    CHECK(stream.rest().size() == kMany + 2);
  }
}

TEST_CASE("SIGTERM after many lines stores what arrived and exits with 0 (3.11)", "[long]") {
  for (const bool pouring : {false, true}) {
    INFO((pouring ? "lines come" : "silence"));
    World world({{"--drain", "0.3"}});
    const ManyLines many;
    world.ollama.answer_with(many.then(pour("p", pouring)));
    Stream stream(world.endpoint, chat_body("app", "mark-term"));
    many.read(stream);
    const auto before = Clock::now();
    world.stop();
    CHECK(ms_between(before, Clock::now()) < 5000);
    const auto rows = world.database.conversation("app");
    REQUIRE(rows.size() == 2);
    CHECK(rows[1][1].rfind(ManyLines::text(), 0) == 0);
    const auto events = stream.rest();
    INFO(shown(events));
    error_event_text(events.back());
    CHECK(std::count_if(events.begin(), events.end(), [](const SseEvent& event) { return event.type == "error"; }) == 1);
  }
}

TEST_CASE("SIGTERM lets an answer of many lines that ends within --drain come to its end (3.11)", "[long]") {
  World world({{"--drain", "10"}});
  const ManyLines many;
  const Gate more;
  world.ollama.answer_with(many.then([=](Conn& conn) {
    conn.wait(more);
    for (int i = 0; i < 10; ++i) {
      conn.line(token_line("p"));
      conn.pause(5);
    }
    end_well(conn);
  }));
  Stream stream(world.endpoint, chat_body("app", "x"));
  many.read(stream);
  world.chatterd->signal(SIGTERM);
  REQUIRE(eventually([&] { return !try_connect("127.0.0.1", world.endpoint.port, Deadline(500)).is_open(); }));
  more.open();
  const auto events = stream.rest();
  INFO(shown(events));
  REQUIRE(events.size() == kMany + 11);
  CHECK(events.back().data == done_line());
  world.stop();
  CHECK(joined(world.database.conversation("app")) == "user:x|assistant:" + ManyLines::text() + "pppppppppp");
}
