// Contract sections 3.6 to 3.8: from Ollama's lines to events, byte for byte.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

std::string body_of_chat(const Shared& world) {
  const Response response = world->post("/llmchat/", chat_body(fresh_app(), "x"));
  INFO(response.text());
  REQUIRE(response.status() == 200);
  CHECK(response.complete);
  return response.body;
}

const std::vector<std::string> kLines = {token_line("a"), token_line(" b\xc3\xa9\xf0\x9f\x98\x80"), token_line("\n\n"), done_line()};

std::string as_ndjson(const std::vector<std::string>& lines) {
  std::string all;
  for (const std::string& line : lines) all += line + "\n";
  return all;
}

std::vector<std::string> cut_into(const std::string& text, size_t size) {
  std::vector<std::string> pieces;
  for (size_t at = 0; at < text.size(); at += size) pieces.push_back(text.substr(at, size));
  return pieces;
}

}  // namespace

TEST_CASE("the stream has its headers, and only one of each (3.6)", "[relay]") {
  const Shared world;
  const Response response = world->post("/llmchat/", chat_body(fresh_app(), "x"));
  INFO(response.text());
  CHECK(response.head.version == "HTTP/1.1");
  CHECK(response.head.header("Content-Type") == "text/event-stream");
  CHECK(response.head.header("Cache-Control") == "no-cache");
  CHECK(response.head.header("X-Accel-Buffering") == "no");
  for (const char* name : {"Content-Type", "Cache-Control", "X-Accel-Buffering", "X-Request-Id"}) {
    CHECK(response.head.count(name) == 1);
  }
  CHECK(response.head.header("Content-Encoding").empty());
}

TEST_CASE("a client that would take compression gets the lines as they come (3.6)", "[relay]") {
  const Shared world;
  const Request request{"POST", "/llmchat/", chat_body(fresh_app(), "x"), {{"Accept-Encoding", "gzip, deflate, br"}}};
  const Response response = world->send(request);
  CHECK(response.head.header("Content-Encoding").empty());
  CHECK(response.body == data_events({token_line("Hello"), token_line(", world"), done_line()}));
}

TEST_CASE("a Range header does not cut the stream (3.6)", "[relay]") {
  const Shared world;
  const Response response = world->send({"POST", "/llmchat/", chat_body(fresh_app(), "x"), {{"Range", "bytes=0-5"}}});
  INFO(response.text());
  CHECK(response.status() == 200);
  CHECK(response.body == data_events({token_line("Hello"), token_line(", world"), done_line()}));
}

TEST_CASE("each line becomes one data event, byte for byte (3.7)", "[relay]") {
  const Shared world;
  const std::vector<std::string> lines = {token_line("a"), R"({"b":1.0,"a":12345678901234567890,"c":1e2,"u":"\u00e9\/"})",
                                          R"({ "spaced" : [ 1 , 2 ] })", "{}", thinking_line("hm"), done_line()};
  world->ollama.answer_with(answer_lines(lines));
  CHECK(body_of_chat(world) == data_events(lines));
}

TEST_CASE("lines may be split anywhere, also within a character (3.7)", "[relay]") {
  const Shared world;
  const std::string all = as_ndjson(kLines);
  for (const size_t size : {size_t{1}, size_t{3}, size_t{50}}) {
    // Pieces of one byte take long by number: those of the first line and a half do.
    std::vector<std::string> pieces = cut_into(size == 1 ? all.substr(0, kLines[0].size() + 120) : all, size);
    if (size == 1) pieces.push_back(all.substr(kLines[0].size() + 120));
    world->ollama.answer_with(answer_pieces(pieces));
    INFO("pieces of " << size);
    CHECK(body_of_chat(world) == data_events(kLines));
  }
}

TEST_CASE("many lines may come in one piece (3.7)", "[relay]") {
  const Shared world;
  std::vector<std::string> lines;
  for (int i = 0; i < 2000; ++i) lines.push_back(token_line("t" + std::to_string(i)));
  lines.push_back(done_line());
  world->ollama.answer_with(answer_pieces({as_ndjson(lines)}));
  CHECK(body_of_chat(world) == data_events(lines));
}

TEST_CASE("the last line may lack its newline, however the body is framed (3.7)", "[relay]") {
  const Shared world;
  const std::string all = as_ndjson(kLines);
  const std::string open_end = all.substr(0, all.size() - 1);
  const std::vector<std::pair<const char*, Script>> framings = {
      {"chunks", answer_pieces({open_end})},
      {"Content-Length", answer_document(200, open_end, "application/x-ndjson")},
      {"until close", [=](Conn& conn) {
         conn.head(200, {{"Content-Type", "application/x-ndjson"}, {"Connection", "close"}});
         conn.raw(open_end);
         conn.fin();
       }},
      {"HTTP/1.0", [=](Conn& conn) {
         conn.raw("HTTP/1.0 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n" + open_end);
         conn.fin();
       }},
      {"chunk extensions", [=](Conn& conn) {
         conn.stream_head();
         char size[32];
         std::snprintf(size, sizeof size, "%zX;x=y\r\n", open_end.size());
         conn.raw(size + open_end + "\r\n0;z\r\nTrailer: t\r\n\r\n");
       }}};
  for (const auto& [name, script] : framings) {
    world->ollama.answer_with(script);
    INFO(name);
    CHECK(body_of_chat(world) == data_events(kLines));
  }
}

TEST_CASE("an Ollama that ends each line with CRLF is understood (3.7)", "[relay]") {
  const Shared world;
  world->ollama.answer_with(answer_pieces({kLines[0] + "\r", "\n" + kLines[3] + "\r\n"}));
  CHECK(body_of_chat(world) == data_events({kLines[0], kLines[3]}));
}

TEST_CASE("blank lines are passed over (3.7)", "[relay]") {
  const Shared world;
  world->ollama.answer_with(answer_pieces({"\n\n" + kLines[0] + "\n\r\n\n", "\n", kLines[3] + "\n\n"}));
  CHECK(body_of_chat(world) == data_events({kLines[0], kLines[3]}));
}

TEST_CASE("stream:false is one event (3.7)", "[relay]") {
  const Shared world;
  const std::string app = fresh_app();
  const std::string document = R"({"model":"m","message":{"role":"assistant","content":"all at once"},"done":true})";
  world->ollama.answer_with(answer_document(200, document, "application/json; charset=utf-8"));
  const Response response = world->post("/llmchat/", R"({"appID":")" + app + R"(","model":"m","messages":[{"role":"user","content":"x"}],"stream":false})");
  INFO(response.text());
  CHECK(response.head.header("Content-Type") == "text/event-stream");
  CHECK(response.body == data_events({document}));
  CHECK(joined(world->database.wait_for_rows(app, 2)) == "user:x|assistant:all at once");
}

TEST_CASE("each line is written as soon as it has arrived (3.7)", "[relay]") {
  const Shared world;
  constexpr size_t kCount = 5;
  std::vector<Gate> gates(kCount);
  world->ollama.answer_with([gates](Conn& conn) {
    conn.stream_head();
    for (size_t i = 0; i < gates.size(); ++i) {
      conn.line(token_line(std::to_string(i)));
      conn.wait(gates[i]);
    }
    conn.line(done_line());
    conn.end_chunks();
  });
  Stream stream(world->endpoint, chat_body(fresh_app(), "x"));
  for (size_t i = 0; i < kCount; ++i) {
    CHECK(stream.events(i + 1).back().data == token_line(std::to_string(i)));
    gates[i].open();
  }
  CHECK(stream.rest().size() == kCount + 1);
}

TEST_CASE("a long line passes, one beyond --max-line becomes an error event and not a burst of memory (3.8)", "[relay]") {
  const Shared world;
  const std::string long_line = token_line(std::string(900 * 1024, 'l'));
  const std::string too_long = token_line(std::string(10u << 20, 'x'));
  world->ollama.answer_with(answer_lines({long_line, too_long, done_line()}));
  const Response response = world->post("/llmchat/", chat_body(fresh_app(), "x"));
  const auto events = parse_sse(response.body);
  CHECK(response.complete);
  // Whether the stream goes on after such a line is left open.
  REQUIRE(events.size() >= 2);
  CHECK(events[0].data == long_line);
  CHECK(error_event_text(events[1]).size() < 1000);
}

TEST_CASE("a line that is not a JSON object becomes one error event and the next lines follow (3.8)", "[relay]") {
  const Shared world;
  const std::vector<std::string> garbage = {"garbage", "[1,2]", "\"text\"", "42", "null", "{\"cut\":", "<html>",
                                            "{\"a\":1} x", "{'a':1}", "\xff\xfe{}", "{\"a\":\"\xc3\"}", "data: x",
                                            "{\"a\":\"tab\tin it\"}"};
  for (const std::string& line : garbage) {
    world->ollama.answer_with(answer_lines({kLines[0], line, kLines[1], done_line()}));
    const auto events = parse_sse(body_of_chat(world));
    INFO("the line: " << line << "\nthe events:\n" << shown(events));
    REQUIRE(events.size() == 4);
    CHECK(events[0].data == kLines[0]);
    error_event_text(events[1]);
    CHECK(events[2].data == kLines[1]);
    CHECK(events[3].data == done_line());
  }
}

TEST_CASE("a line with an error becomes an error event with its text, exactly framed (3.8)", "[relay]") {
  const Shared world;
  world->ollama.answer_with(answer_lines({kLines[0], error_line("llama runner died"), done_line()}));
  CHECK(body_of_chat(world) == data_events({kLines[0]}) + "event: error\ndata: { \"error\": \"llama runner died\" }\n\n" +
                                   data_events({done_line()}));
}

TEST_CASE("an error that is no string still becomes a JSON string (3.8)", "[relay]") {
  const Shared world;
  for (const char* line : {R"({"error":{"code":7,"message":"deep"}})", R"({"error":17})", R"({"error":["a"]})",
                           R"({"message":{"role":"assistant","content":"beside"},"error":"x","done":false})"}) {
    world->ollama.answer_with(answer_lines({line, done_line()}));
    const auto events = parse_sse(body_of_chat(world));
    INFO("the line: " << line << "\nthe events:\n" << shown(events));
    REQUIRE(events.size() == 2);
    error_event_text(events[0]);
    CHECK(events[1].data == done_line());
  }
}

TEST_CASE("text from Ollama can never start a new field (3.8)", "[relay]") {
  const Shared world;
  const std::string evil = "x\r\ndata: forged\n\nevent: forged\rdata: forged\n\n";
  const std::vector<std::string> lines = {token_line(evil), error_line(evil), "garbage\rdata: forged\r\revent: forged",
                                          "{\"a\":1,\r\"data: forged\":2}", done_line()};
  world->ollama.answer_with(answer_lines(lines));
  const std::string body = body_of_chat(world);
  INFO(body);
  CHECK(body.find('\r') == std::string::npos);
  const auto events = parse_sse(body);
  REQUIRE(events.size() == 5);
  CHECK(events[0].data == token_line(evil));
  CHECK(error_event_text(events[1]) == evil);
  error_event_text(events[2]);
  CHECK(events[4].data == done_line());
}

TEST_CASE("a line nested beyond all measure does not end the process (3.8)", "[relay]") {
  const Shared world;
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += R"({"a":)";
  world->ollama.answer_with(answer_lines({deep, deep + "1" + std::string(100000, '}'), done_line()}));
  const Response response = world->post("/llmchat/", chat_body(fresh_app(), "x"));
  CHECK(response.complete);
  CHECK(parse_sse(response.body).back().data == done_line());
}

TEST_CASE("fields of an unexpected type in a line break nothing (3.8)", "[relay]") {
  const Shared world;
  const std::string app = fresh_app();
  const std::vector<std::string> lines = {R"({"message":"text"})", R"({"message":{"content":7}})", R"({"message":null})",
                                          R"({"message":{"content":null},"done":"true"})", R"({"done":1})",
                                          R"({"message":[{"content":"x"}]})", token_line("right"), done_line()};
  world->ollama.answer_with(answer_lines(lines));
  CHECK(world->post("/llmchat/", chat_body(app, "x")).body == data_events(lines));
  CHECK(joined(world->database.wait_for_rows(app, 2)) == "user:x|assistant:right");
}
