#include "tests/catch.hpp"

#include <string>

#include "request.hpp"

namespace {

std::string problem_of(const std::string& body) {
  const auto chat = parse_chat_request(body);
  return chat.ok() ? "" : chat.error().sentence;
}

std::string with_message(const std::string& message) { return R"({"appID":"a","model":"m","messages":[)" + message + "]}"; }

std::string nested(int depth) { return R"({"appID":"a","model":"m","x":)" + std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']') + "}"; }

}  // namespace

TEST_CASE("a right request is taken apart, with its other fields exactly as written (3.1, 3.4)", "[request]") {
  const auto parsed = parse_chat_request(
      "\xEF\xBB\xBF { \"appID\" : \"a\\u00e9\", \"options\":{\"t\": 1.0,\"n\":12345678901234567890 }, \"model\":\"m\\/x\",\n"
      "\"messages\":[ {\"role\":\"user\",\"content\":\"h\\ni\",\"images\":[\"AA==\"]} ],\"stream\":false,\"think\" :  true}");
  REQUIRE(parsed.ok());
  const ChatRequest& chat = parsed.value();
  CHECK(chat.app_id == "a\xc3\xa9");
  CHECK(chat.model_json == "\"m\\/x\"");
  CHECK_FALSE(chat.stream);
  CHECK(chat.other_fields == R"(,"options":{"t": 1.0,"n":12345678901234567890 },"think":true)");
  REQUIRE(chat.messages.size() == 1);
  CHECK(chat.messages[0].role == "user");
  CHECK(chat.messages[0].content == "h\ni");
  CHECK(chat.messages[0].json == R"({"role":"user","content":"h\ni","images":["AA=="]})");
}

TEST_CASE("messages may be missing or null, stream is true when missing (3.1)", "[request]") {
  const auto body = GENERATE(as<std::string>(), R"({"appID":"a","model":"m"})", R"({"appID":"a","model":"m","messages":null})", R"({"appID":"a","model":"m","messages":[]})");
  const auto parsed = parse_chat_request(body);
  REQUIRE(parsed.ok());
  CHECK(parsed.value().messages.empty());
  CHECK(parsed.value().stream);
}

TEST_CASE("content may be missing beside images or tool_calls only (3.1)", "[request]") {
  CHECK(problem_of(with_message(R"({"role":"user","images":["AA=="]})")).empty());
  CHECK(problem_of(with_message(R"({"role":"assistant","tool_calls":[],"content":null})")).empty());
  CHECK(problem_of(with_message(R"({"role":"user"})")) == "messages[0].content is missing.");
  CHECK(problem_of(with_message(R"({"role":"user","images":null})")) == "messages[0].content is missing.");
  CHECK(problem_of(with_message(R"({"role":"user","images":[],"content":5})")) == "messages[0].content is not a string.");
}

TEST_CASE("a wrong field is named in one sentence (1.4, 3.1)", "[request]") {
  struct Case {
    std::string body, problem;
  };
  const auto wrong = GENERATE(values<Case>({
      {R"([])", "The request's body is not a JSON object."},
      {R"({"model":"m"})", "appID is missing."},
      {R"({"appID":"","model":"m"})", "appID is empty."},
      {R"({"appID":5,"model":"m"})", "appID is not a string."},
      {R"({"appID":null,"model":"m"})", "appID is not a string."},
      {R"({"appID":"a"})", "model is missing."},
      {R"({"appID":"a","model":""})", "model is empty."},
      {R"({"appID":"a","model":"m","messages":{}})", "messages is not an array."},
      {R"({"appID":"a","model":"m","messages":[1]})", "messages[0] is not an object."},
      {R"({"appID":"a","model":"m","messages":[{"role":"user","content":""},{"role":"","content":""}]})", "messages[1].role is empty."},
      {R"({"appID":"a","model":"m","messages":[{"content":"x"}]})", "messages[0].role is missing."},
      {R"({"appID":"a","model":"m","stream":"yes"})", "stream is not a boolean."},
      {R"({"appID":"a","model":"m","stream":null})", "stream is not a boolean."},
  }));
  CAPTURE(wrong.body);
  CHECK(problem_of(wrong.body) == wrong.problem);
}

TEST_CASE("an appID has at most 64 characters, however many bytes they take (3.1)", "[request]") {
  std::string wide;
  for (int i = 0; i < 64; ++i) wide += "\xf0\x9f\x98\x80";
  CHECK(problem_of(R"({"model":"m","appID":")" + wide + "\"}").empty());
  CHECK(problem_of(R"({"model":"m","appID":"x)" + wide + "\"}") == "appID is longer than 64 characters.");
}

TEST_CASE("a body that is not JSON in valid UTF-8 is refused without repeating it (3.1)", "[request]") {
  const auto body = GENERATE(as<std::string>(), "", "{", "{}x", "{\"appID\":\"\xff\"}", "{\"appID\":\"\xc0\xaf\"}", "{\"a\":\"\\ud800\"}", "{\"a\":1e400}",
                             std::string("{}\0", 3), std::string("{\"a\":\"\0\"}", 9), "{\"a\":\"\n\"}");
  const std::string problem = problem_of(body);
  CAPTURE(body);
  CHECK(problem.find("The request's body is not valid JSON in UTF-8 near byte ") == 0);
}

TEST_CASE("U+0000 anywhere in a body is refused (3.1)", "[request]") {
  const auto body = GENERATE(as<std::string>(), R"({"appID":"a\u0000b","model":"m"})", R"({"appID":"a","model":"m","x":{"y":["\u0000"]}})", R"({"appID":"a","model":"m","\u0000":1})");
  CHECK(problem_of(body) == "The request's body contains the character U+0000, which can't be stored.");
}

TEST_CASE("nesting deeper than 64 is refused, however deep (3.1)", "[request]") {
  CHECK(problem_of(nested(63)).empty());
  CHECK(problem_of(nested(64)) == "The request's body is nested deeper than 64 levels.");
  CHECK(problem_of(nested(100'000)) == "The request's body is nested deeper than 64 levels.");
}

TEST_CASE("of a doubled field the last one counts, as in common parsers", "[request]") {
  const auto parsed = parse_chat_request(R"({"appID":"a","appID":"b","model":"m","app\u0049D":"c"})");
  REQUIRE(parsed.ok());
  CHECK(parsed.value().app_id == "c");
  CHECK(parsed.value().other_fields.empty());
}

TEST_CASE("a public chatt has name, or username, and message (2)", "[request]") {
  CHECK(parse_post_request(R"({"name":"n","message":"m"})").value().name == "n");
  CHECK(parse_post_request(R"({"username":"u","message":"m"})").value().name == "u");
  CHECK(parse_post_request(R"({"message":"m"})").error().sentence == "name is missing.");
  CHECK(parse_post_request(R"({"name":1,"message":"m"})").error().sentence == "name is not a string.");
  CHECK(parse_post_request(R"({"name":"n"})").error().sentence == "message is missing.");
}

TEST_CASE("preparing a conversation needs an appID and right messages only (2)", "[request]") {
  const auto prep = parse_prep_request(R"({"appID":"a","messages":[{"role":"system","content":"s"}]})");
  REQUIRE(prep.ok());
  CHECK(prep.value().messages.at(0).content == "s");
  CHECK(parse_prep_request(R"({"messages":[]})").error().sentence == "appID is missing.");
}
