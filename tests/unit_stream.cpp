// Ollama's lines and what becomes of them: splitting, reading, framing.
#include "tests/catch.hpp"

#include <string>
#include <vector>

#include "ndjson.hpp"
#include "relay.hpp"
#include "sse.hpp"

namespace {

std::vector<std::string> split(const std::vector<std::string>& pieces, size_t line_bytes_max = 100) {
  LineSplitter splitter(line_bytes_max);
  std::vector<std::string> lines;
  const auto collect = [&](std::string_view line) { lines.emplace_back(line); };
  for (const std::string& piece : pieces) {
    if (!splitter.feed(piece, collect)) return {"too long"};
  }
  splitter.finish(collect);
  return lines;
}

std::string frame(const std::vector<std::string>& pieces, const std::string& problem = "") {
  SseFraming framing(1000, false);
  std::string out;
  for (const std::string& piece : pieces) CHECK(framing.take(piece, out));
  framing.close(problem, out);
  return out;
}

using Lines = std::vector<std::string>;

const std::string kDone = R"({"message":{"content":""},"done":true})";
const std::string kDoneEvent = "data: " + kDone + "\n\n";

}  // namespace

TEST_CASE("lines are the same however the bytes arrive (3.7)", "[stream]") {
  const std::string text = "one\ntwo\r\n\n \t\r\nthree";
  const Lines expected{"one", "two", "three"};
  CHECK(split({text}) == expected);
  Lines bytes;
  for (const char c : text) bytes.emplace_back(1, c);
  CHECK(split(bytes) == expected);
  for (size_t cut = 0; cut <= text.size(); ++cut) CHECK(split({text.substr(0, cut), text.substr(cut)}) == expected);
}

TEST_CASE("a line over its limit is refused, whole or in pieces", "[stream]") {
  CHECK(split({std::string(100, 'x') + "\n"}) == Lines{std::string(100, 'x')});
  CHECK(split({std::string(101, 'x') + "\n"}) == Lines{"too long"});
  CHECK(split({std::string(60, 'x'), std::string(60, 'x')}) == Lines{"too long"});
}

TEST_CASE("content, done and error are read from a line", "[stream]") {
  const OllamaLine token = parse_ollama_line(R"({"model":"m","message":{"role":"assistant","content":"a\u00e9\n"},"done":false})");
  CHECK(token.is_object);
  CHECK(token.content == "a\xc3\xa9\n");
  CHECK_FALSE(token.done);
  CHECK_FALSE(token.error.has_value());
  CHECK(parse_ollama_line(R"({"done":true})").done);
  CHECK(parse_ollama_line(R"({"error":"model 'x' not found"})").error == std::string("model 'x' not found"));
  CHECK(parse_ollama_line(R"({"error":{"code": 5}})").error == std::string(R"({"code": 5})"));
}

TEST_CASE("values of another type or in another place are not taken for content, done or error", "[stream]") {
  const auto line = GENERATE(R"({"message":{"content":5},"done":1})", R"({"message":["content","x"]})", R"({"message":{"x":{"content":"y"}}})",
                             R"({"content":"x","x":{"done":true,"error":"e"}})", R"({"error":null})", R"({"message":"x"})");
  const OllamaLine parsed = parse_ollama_line(line);
  CHECK(parsed.is_object);
  CHECK(parsed.content.empty());
  CHECK_FALSE(parsed.done);
  CHECK_FALSE(parsed.error.has_value());
}

TEST_CASE("a line that is not a JSON object is known as such (3.8)", "[stream]") {
  const std::string line = GENERATE(as<std::string>(), "x", "[1]", "\"text\"", "null", "{\"a\":", "{} {}", "{\"a\":\"\xff\"}", std::string("{}\0x", 4));
  CHECK_FALSE(parse_ollama_line(line).is_object);
}

TEST_CASE("a line nested a hundred thousand deep is read without harm", "[stream]") {
  const std::string deep = "{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  CHECK(parse_ollama_line(deep).is_object);
  CHECK_FALSE(parse_ollama_line(std::string(100'000, '{')).is_object);
}

TEST_CASE("each line becomes one event, byte for byte (3.7)", "[stream]") {
  const std::string token = R"({ "message" : {"content":"a"} , "x": 1.0 })";
  CHECK(frame({token + "\n" + kDone + "\n"}) == "data: " + token + "\n\n" + kDoneEvent);
  CHECK(frame({kDone}) == kDoneEvent);  // stream:false has no line end
}

TEST_CASE("a line that is not an object, or holds an error, becomes an error event, and the next lines follow (3.8)", "[stream]") {
  CHECK(frame({"garbage\n" + kDone + "\n"}) == "event: error\ndata: { \"error\": \"Ollama sent a line that is not a JSON object.\" }\n\n" + kDoneEvent);
  CHECK(frame({"{\"error\":\"a\\nb\"}\n" + kDone + "\n"}) == "event: error\ndata: { \"error\": \"a\\nb\" }\n\n" + kDoneEvent);
}

TEST_CASE("no text can begin a new field of an event (3.8)", "[stream]") {
  std::string out;
  append_sse_error(out, "x\r\n\r\nevent: y\ndata: z");
  CHECK(out == "event: error\ndata: { \"error\": \"x\\r\\n\\r\\nevent: y\\ndata: z\" }\n\n");
  out.clear();
  append_sse_data(out, "{\"a\":\r\r1}");
  CHECK(out == "data: {\"a\":  1}\n\n");
}

TEST_CASE("an answer without done:true ends with one error event (3.9)", "[stream]") {
  const std::string token = R"({"message":{"content":"a"}})";
  CHECK(frame({token + "\n"}) == "data: " + token + "\n\nevent: error\ndata: { \"error\": \"Ollama ended the answer before it was complete.\" }\n\n");
  CHECK(frame({token + "\n", "{\"mess"}, "It broke.") == "data: " + token + "\n\nevent: error\ndata: { \"error\": \"It broke.\" }\n\n");
  CHECK(frame({}) == "event: error\ndata: { \"error\": \"Ollama ended the answer before it was complete.\" }\n\n");
}

TEST_CASE("what breaks after done:true is of no concern to the client (3.9)", "[stream]") { CHECK(frame({kDone + "\n"}, "It broke.") == kDoneEvent); }

TEST_CASE("an error of Ollama's that ends its answer is told once (3.8, 3.9)", "[stream]") {
  CHECK(frame({"{\"error\":\"boom\"}\n"}) == "event: error\ndata: { \"error\": \"boom\" }\n\n");
}

TEST_CASE("the reply is the text of all tokens (3.11)", "[stream]") {
  SseFraming framing(1000, false);
  std::string out;
  CHECK(framing.take("{\"message\":{\"content\":\"Hello \"}}\n{\"message\":{\"thinking\":\"hm\",\"content\":\"\"}}\n{\"message\":{\"con", out));
  CHECK(framing.take("tent\":\" \\n world\"}}\n", out));
  CHECK(framing.reply() == "Hello world");
  CHECK(framing.lines() == 3);
}

TEST_CASE("a completion is passed on unchanged, and says in its own form that it broke off (2)", "[stream]") {
  RawFraming framing(true);
  std::string out;
  CHECK(framing.take("{\"response\":\"a\"}\r\n", out));
  CHECK(framing.close("It broke.", out));
  CHECK(out == "{\"response\":\"a\"}\r\n{\"error\":\"It broke.\"}\n");
  CHECK(framing.take("{\"respo", out));
  CHECK_FALSE(framing.close("It broke.", out));
  CHECK_FALSE(RawFraming(false).close("It broke.", out));
}

TEST_CASE("Ollama's words are taken from an error answer (3.5)", "[stream]") {
  CHECK(error_text(404, R"({"error":"model 'x' not found"})") == "model 'x' not found");
  CHECK(error_text(500, "<html>no</html>") == "Ollama answered with status 500.");
}
