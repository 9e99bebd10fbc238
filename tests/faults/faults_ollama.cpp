// Ollama in all the ways it can fail.
#include "tests/faults/world.hpp"

using namespace faults;

namespace {

// What every script of this file sends, or a beginning of it.
const char* const kReply = "whole and  more \xe2\x82\xac here";
std::string whole_reply(const std::string& prompt) { return prompt.rfind("bad-", 0) == 0 ? kReply : usual_reply(prompt); }

Script token_then(const std::function<void(Conn&)>& end) {
  return [end](Conn& conn) {
    conn.stream_head();
    conn.line(token_line("whole"));
    conn.pause(20);
    end(conn);
  };
}

struct Fault {
  const char* name;
  Script script;
  int status;        // what the client gets
  bool error_event;  // whether the stream ends with an error
  const char* kept;  // the reply in the database; "": none
};

std::vector<Fault> faults_of_ollama() {
  const auto end_well = [](Conn& conn) {
    conn.line(done_line());
    conn.end_chunks();
  };
  return {
      {"FIN before the headers", [](Conn& conn) { conn.fin(); }, 502, false, ""},
      {"RST before the headers", [](Conn& conn) { conn.rst(); }, 502, false, ""},
      {"not HTTP", [](Conn& conn) { conn.raw("SSH-2.0-OpenSSH_9.2\r\n\r\n"); conn.fin(); }, 502, false, ""},
      {"404", answer_document(404, R"({"error":"model 'm' not found"})"), 404, false, ""},
      {"503", answer_document(503, R"({"error":"server busy, please try again.  maximum pending requests exceeded"})"), 503, false, ""},
      {"500", answer_document(500, "<html>"), 502, false, ""},
      {"FIN in mid-stream", token_then([](Conn& conn) { conn.fin(); }), 200, true, "whole"},
      {"RST in mid-stream", token_then([](Conn& conn) { conn.rst(); }), 200, true, "whole"},
      {"FIN in mid-chunk", token_then([](Conn& conn) { conn.raw("ff\r\n{\"message\":{\"content\":\"x"); conn.fin(); }), 200, true, "whole"},
      {"no chunk", token_then([](Conn& conn) { conn.raw("garbage\r\n"); conn.fin(); }), 200, true, "whole"},
      {"an error line", token_then([](Conn& conn) { conn.line(error_line("out of memory")); conn.end_chunks(); }), 200, true, "whole"},
      {"garbage lines", token_then([=](Conn& conn) {
         for (const char* line : {"garbage", "[1,2]", "\x01\xff\xfe", "{\"message\":", "\"text\"", "7"}) conn.line(line);
         conn.line(token_line(" and  more"));
         end_well(conn);
       }), 200, true, "whole and more"},
      {"wrong types", token_then([=](Conn& conn) {
         for (const char* line : {R"({"message":5})", R"({"message":{"content":{"a":1}}})", R"({"message":[]})", R"({"done":"yes"})", "{}"}) {
           conn.line(line);
         }
         end_well(conn);
       }), 200, false, "whole"},
      {"split UTF-8", token_then([=](Conn& conn) {
         const std::string text = token_line(" and  more \xe2\x82\xac here") + "\n";
         for (const char byte : text) conn.chunk(std::string(1, byte));
         end_well(conn);
       }), 200, false, "whole and more \xe2\x82\xac here"},
  };
}

// Ollama's bytes without end of a line; the stream must end by itself.
Script line_without_end(size_t bytes) {
  return token_then([bytes](Conn& conn) {
    conn.chunk(R"({"message":{"role":"assistant","content":")");
    const std::string piece(64 * 1024, 'x');
    for (size_t sent = 0; sent < bytes; sent += piece.size()) conn.chunk(piece);
    conn.wait_until_client_leaves();
  });
}

std::string stream_of(World& world, const std::string& app) {
  Connection connection(world.endpoint());
  connection.send(chat_request(app, app + "#1"));
  const int status = connection.read_head().status;
  const std::string body = connection.read_body_to_end(6 * kPatienceMs);
  Turn turn;
  turn.prompt = app + "#1";
  turn.status = status;
  turn.outcome = outcome_of(status, body);
  world.log.add(app, turn);
  CHECK(connection.complete());
  return body;
}

size_t errors_in(const std::string& stream) {
  size_t count = 0;
  for (size_t at = stream.find("event: error\n"); at != std::string::npos; at = stream.find("event: error\n", at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("Ollama that dies, sends garbage or refuses gets the contract's answer each time", "[fault][short][ollama]") {
  World world({.events = {"ollama_away"}});
  world.reply_to = whole_reply;
  int number = 0;
  for (const Fault& fault : faults_of_ollama()) {
    INFO(fault.name);
    const std::string app = "bad-" + std::to_string(++number);
    world.ollama.answer_with(fault.script);
    Connection connection(world.endpoint());
    connection.send(chat_request(app, app + "#1"));
    const ResponseHead head = connection.read_head();
    const std::string body = connection.read_body_to_end();
    INFO(head.raw << body);
    CHECK(connection.complete());
    CHECK(head.status == fault.status);
    if (head.status == 200) CHECK((errors_in(body) > 0) == fault.error_event);
    if (head.status == 503) CHECK_FALSE(head.header("Retry-After").empty());
    // The prompt is stored before Ollama is asked, and stays whatever it says.
    Turn turn;
    turn.prompt = app + "#1";
    turn.status = head.status;
    turn.outcome = Outcome::acknowledged;
    world.log.add(app, turn);
    const auto rows = world.wait_for_rows(app, *fault.kept == '\0' ? 1 : 2);
    REQUIRE(rows.size() == (*fault.kept == '\0' ? 1U : 2U));
    if (*fault.kept != '\0') CHECK(rows[1][1] == fault.kept);
  }
  world.ollama.answer_with(talk());
  world.finish();
}

TEST_CASE("Ollama that refuses connections is 502, and serves again without a restart", "[fault][short][ollama]") {
  Fd nobody = bind_loopback(0);
  World world({.events = {"ollama_away"}});
  world.stop();
  world.set_arguments({"--ollama", url_of(nobody)});
  world.start();
  for (int i = 0; i < 5; ++i) CHECK(world.turn("refused", "refused#" + std::to_string(i)).status == 502);
  ScriptedOllama back(std::move(nobody));
  back.answer_with(talk());
  CHECK(world.wait_for_service() < world.within_ms(1000));
  world.finish();
}

TEST_CASE("a line of Ollama's of 10 MB without an end ends the stream, with memory within 8 MB", "[fault][short][ollama]") {
  World world;
  world.reply_to = whole_reply;
  reset_memory_peak(world.pid());
  const size_t before_kib = memory_kib(world.pid());
  for (int i = 0; i < 3; ++i) {
    const std::string app = "bad-line-" + std::to_string(i);
    world.ollama.answer_with(line_without_end(10 << 20));
    const std::string stream = stream_of(world, app);
    CHECK(errors_in(stream) == 1);
    const auto exchange = world.ollama.wait_for_request(app);
    CHECK(eventually([&] { return exchange->client_left().has_value(); }, world.within_ms(1000)));
  }
  const size_t grown_kib = memory_peak_kib(world.pid()) - std::min(before_kib, memory_peak_kib(world.pid()));
  report("memory grew by " + std::to_string(grown_kib) + " KiB at most");
  if (!world.sanitized()) CHECK(grown_kib < 8 * 1024);
  world.ollama.answer_with(talk());
  world.finish();
}

TEST_CASE("lines for ever are bounded in size and in time", "[fault][short][ollama]") {
  for (const auto& [option, value] : {std::pair{"--max-reply", "300000"}, std::pair{"--reply-seconds", "1"}}) {
    INFO(option);
    World world({.arguments = {option, value}});
    const std::string line = token_line("for ever ");
    world.reply_to = [](const std::string& prompt) {
      std::string all;
      for (int i = 0; i < 2000000 && prompt.rfind("warm-up", 0) != 0; ++i) all += "for ever ";
      return all.empty() ? usual_reply(prompt) : all;
    };
    world.ollama.answer_with([line](Conn& conn) {
      conn.stream_head();
      for (;;) conn.line(line);
    });
    const auto began = Clock::now();
    CHECK(errors_in(stream_of(world, "ever")) == 1);
    report(std::string(option) + " " + value + ": the stream ended after " + ms_text(ms_between(began, Clock::now())));
    CHECK(world.wait_for_rows("ever", 2).size() == 2);
    world.ollama.answer_with(talk());
    world.finish();
  }
}

TEST_CASE("an Ollama silent for a minute keeps its stream by pings, and its answer counts", "[fault][slow][ollama]") {
  World world;
  world.ollama.answer_with([](Conn& conn) {
    conn.pause(60000);
    talk()(conn);
  });
  const std::string stream = stream_of(world, "silent");
  CHECK(stream.find(": ping\n\n") == 0);
  CHECK(stream.find("\"done\":true") != std::string::npos);
  CHECK(errors_in(stream) == 0);
  CHECK(world.wait_for_rows("silent", 2).size() == 2);
  world.ollama.answer_with(talk());
  world.finish();
}
