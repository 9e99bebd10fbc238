// Contract section 3.1: everything is checked before anything is stored. Also the checks of the other
// POST routes, which follow the same rules.
#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

struct Case {
  const char* what;
  std::string body;
  const char* field = "";  // that the error must name
};

// `app` stands in each body, so that a stored row would be found.
std::string with_app(const std::string& app, const std::string& rest) { return R"({"appID":")" + app + "\"," + rest + "}"; }

std::string message(const std::string& fields) { return R"("model":"m","messages":[{)" + fields + "}]"; }

std::string nested(int depth) {
  // The body is the first level, the array the second.
  return std::string(static_cast<size_t>(depth - 1), '[') + std::string(static_cast<size_t>(depth - 1), ']');
}

void check_refused(World& world, const std::string& path, const std::string& app, const std::vector<Case>& cases) {
  const size_t rows = world.database.conversation(app).size();
  const size_t requests = world.ollama.exchanges().size();
  const std::string all = world.database.value("SELECT count(*) FROM chatts");
  for (const Case& refused : cases) {
    INFO(refused.what << ", sent to " << path << ": " << refused.body.substr(0, 500));
    const Response response = world.post(path, refused.body);
    check_error(response, 422);
    if (response.status() == 422) CHECK(error_text(response.body).find(refused.field) != std::string::npos);
  }
  CHECK(world.database.conversation(app).size() == rows);
  CHECK(world.database.value("SELECT count(*) FROM chatts") == all);
  CHECK(world.ollama.exchanges().size() == requests);
}

const std::string kGood = R"("model":"m","messages":[{"role":"user","content":"x"}])";

}  // namespace

TEST_CASE("a chat body that is not a JSON object in UTF-8 is 422 and nothing is stored (3.1)", "[validation]") {
  const Shared world;
  const std::string app = fresh_app();
  check_refused(*world, "/llmchat/", app,
                {{"empty", ""},
                 {"not JSON", "hello"},
                 {"cut", R"({"appID":")" + app},
                 {"two objects", with_app(app, kGood) + with_app(app, kGood)},
                 {"an array", "[" + with_app(app, kGood) + "]"},
                 {"a string", "\"x\""},
                 {"null", "null"},
                 {"a trailing comma", R"({"appID":")" + app + R"(","model":"m",})"},
                 {"a comment", with_app(app, kGood) + "// x"},
                 {"not UTF-8", with_app(app, message("\"role\":\"user\",\"content\":\"\xff\xfe\""))},
                 {"overlong UTF-8", with_app(app, message("\"role\":\"user\",\"content\":\"\xc0\xaf\""))},
                 {"a surrogate as UTF-8", with_app(app, message("\"role\":\"user\",\"content\":\"\xed\xa0\x80\""))},
                 {"cut UTF-8", with_app(app, message("\"role\":\"user\",\"content\":\"\xe2\x82\""))},
                 {"half a surrogate pair", with_app(app, message(R"("role":"user","content":"\ud83d")"))},
                 {"a raw NUL", with_app(app, message("\"role\":\"user\",\"content\":\"a" + std::string(1, '\0') + "b\""))},
                 {"a raw newline in a string", with_app(app, message("\"role\":\"user\",\"content\":\"a\nb\""))}});
}

TEST_CASE("appID must be a non-empty string of at most 64 characters (3.1)", "[validation]") {
  const Shared world;
  const std::string app = fresh_app();
  const std::string e_acute = "\xc3\xa9";
  std::string long_accents;
  for (int i = 0; i < 65; ++i) long_accents += e_acute;
  check_refused(*world, "/llmchat/", app,
                {{"missing", "{" + kGood + "}", "appID"},
                 {"null", R"({"appID":null,)" + kGood + "}", "appID"},
                 {"empty", R"({"appID":"",)" + kGood + "}", "appID"},
                 {"a number", R"({"appID":5,)" + kGood + "}", "appID"},
                 {"an array", R"({"appID":["a"],)" + kGood + "}", "appID"},
                 {"65 characters", R"({"appID":")" + std::string(65, 'a') + "\"," + kGood + "}", "appID"},
                 {"65 accents", R"({"appID":")" + long_accents + "\"," + kGood + "}", "appID"}});
  // 64 characters are allowed, also where they are more bytes.
  const std::string prefix = fresh_app();
  std::string accents = prefix;
  for (size_t i = prefix.size(); i < 64; ++i) accents += e_acute;
  for (const std::string& longest : {prefix + std::string(64 - prefix.size(), 'a'), accents}) {
    INFO(longest);
    CHECK(world->post("/llmchat/", chat_body(longest, "x")).status() == 200);
    CHECK(world->database.conversation(longest).size() == 2);
  }
}

TEST_CASE("model must be a non-empty string (3.1)", "[validation]") {
  const Shared world;
  const std::string app = fresh_app();
  const std::string messages = R"("messages":[{"role":"user","content":"x"}])";
  check_refused(*world, "/llmchat/", app,
                {{"missing", with_app(app, messages), "model"},
                 {"null", with_app(app, R"("model":null,)" + messages), "model"},
                 {"empty", with_app(app, R"("model":"",)" + messages), "model"},
                 {"a number", with_app(app, R"("model":1,)" + messages), "model"}});
}

TEST_CASE("messages must be an array of objects with a role and a content (3.1)", "[validation]") {
  const Shared world;
  const std::string app = fresh_app();
  const auto messages = [&](const std::string& value) { return with_app(app, R"("model":"m","messages":)" + value); };
  check_refused(*world, "/llmchat/", app,
                {{"a string", messages(R"("x")"), "messages"},
                 {"an object", messages(R"({"role":"user","content":"x"})"), "messages"},
                 {"a number in it", messages("[1]"), "messages"},
                 {"null in it", messages("[null]"), "messages"},
                 {"no role", with_app(app, message(R"("content":"x")")), "role"},
                 {"role empty", with_app(app, message(R"("role":"","content":"x")")), "role"},
                 {"role null", with_app(app, message(R"("role":null,"content":"x")")), "role"},
                 {"role a number", with_app(app, message(R"("role":1,"content":"x")")), "role"},
                 {"no content", with_app(app, message(R"("role":"user")")), "content"},
                 {"content a number", with_app(app, message(R"("role":"user","content":7)")), "content"},
                 {"content an array", with_app(app, message(R"("role":"user","content":["x"])")), "content"},
                 {"content an object", with_app(app, message(R"("role":"user","content":{})")), "content"},
                 {"content a number beside images",
                  with_app(app, message(R"("role":"user","content":7,"images":["aa"])")), "content"},
                 {"the second one is wrong",
                  messages(R"([{"role":"user","content":"right"},{"role":"user","content":false}])"), "content"}});
}

TEST_CASE("messages may be missing, null or empty, and content beside images or tool_calls (3.1)", "[validation]") {
  const Shared world;
  for (const char* rest : {R"("model":"m")", R"("model":"m","messages":null)", R"("model":"m","messages":[])"}) {
    const std::string app = fresh_app();
    INFO(rest);
    CHECK(world->post("/llmchat/", with_app(app, rest)).status() == 200);
    CHECK(joined(world->database.wait_for_rows(app, 1)) == "assistant:Hello, world");
  }
  for (const char* rest : {R"("role":"user","images":["iVBORw0KGgo="])",
                           R"("role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{}}}])",
                           R"("role":"user","content":"")"}) {
    INFO(rest);
    CHECK(world->post("/llmchat/", with_app(fresh_app(), message(rest))).status() == 200);
  }
}

TEST_CASE("stream must be a boolean and is true when missing (3.1)", "[validation]") {
  const Shared world;
  const std::string app = fresh_app();
  check_refused(*world, "/llmchat/", app,
                {{"a string", with_app(app, kGood + R"(,"stream":"true")"), "stream"},
                 {"a number", with_app(app, kGood + R"(,"stream":1)"), "stream"},
                 {"an array", with_app(app, kGood + R"(,"stream":[])"), "stream"}});
  const std::string mark = fresh_mark();
  const std::string fields = R"("model":"m","messages":[{"role":"user","content":")" + mark + "\"}]";
  CHECK(world->post("/llmchat/", with_app(fresh_app(), fields)).status() == 200);
  CHECK(world->ollama.wait_for_request(mark)->request().body.find(R"("stream":true)") != std::string::npos);
  world->ollama.answer_with(answer_document(200, done_line()));
  CHECK(world->post("/llmchat/", with_app(fresh_app(), fields + R"(,"stream":false)")).status() == 200);
  CHECK(world->ollama.wait_for_request(mark, 2)->request().body.find(R"("stream":false)") != std::string::npos);
}

TEST_CASE("U+0000 in any string is 422 (3.1)", "[validation]") {
  const Shared world;
  const std::string app = fresh_app();
  check_refused(*world, "/llmchat/", app,
                {{"appID", R"({"appID":")" + app + R"(\u0000",)" + kGood + "}"},
                 {"model", with_app(app, R"("model":"m\u0000","messages":[])")},
                 {"role", with_app(app, message(R"("role":"us\u0000er","content":"x")"))},
                 {"content", with_app(app, message(R"("role":"user","content":"abc\u0000def")"))},
                 {"an image", with_app(app, message(R"("role":"user","content":"x","images":["\u0000"])"))},
                 {"an option", with_app(app, kGood + R"(,"options":{"stop":["a\u0000"]})")},
                 {"a key", with_app(app, kGood + R"(,"options":{"a\u0000b":1})")}});
  // A backslash that is itself escaped makes no NUL.
  const std::string harmless = fresh_app();
  CHECK(world->post("/llmchat/", with_app(harmless, message(R"("role":"user","content":"abc\\u0000def")"))).status() == 200);
  CHECK(world->database.conversation(harmless)[0][1] == "abc\\u0000def");
}

TEST_CASE("nesting deeper than 64 is 422, however deep, and 64 is taken (3.1)", "[validation]") {
  const Shared world;
  const std::string app = fresh_app();
  check_refused(*world, "/llmchat/", app,
                {{"65", with_app(app, kGood + R"(,"options":)" + nested(65))},
                 {"1,000", with_app(app, kGood + R"(,"options":)" + nested(1000))},
                 {"1,000,000", with_app(app, kGood + R"(,"options":)" + nested(1000000))},
                 {"unclosed", with_app(app, kGood + R"(,"options":)" + std::string(1000000, '['))},
                 {"objects", R"({"a":)" + std::string(5000, ' ') + [] {
                    std::string deep;
                    for (int i = 0; i < 100000; ++i) deep += R"({"a":)";
                    return deep;
                  }()}});
  CHECK(world->post("/llmchat/", with_app(app, kGood + R"(,"options":)" + nested(64))).status() == 200);
}

TEST_CASE("postchatt takes name or username and a message, all strings, else 422 (2)", "[validation]") {
  const Shared world;
  check_refused(*world, "/postchatt/", fresh_app(),
                {{"empty", ""},
                 {"an array", "[]"},
                 {"no name", R"({"message":"x"})", "name"},
                 {"no message", R"({"name":"x"})", "message"},
                 {"name a number", R"({"name":1,"message":"x"})", "name"},
                 {"name null", R"({"name":null,"message":"x"})", "name"},
                 {"message null", R"({"name":"x","message":null})", "message"},
                 {"message an object", R"({"name":"x","message":{}})", "message"},
                 {"NUL in the name", R"({"name":"x\u0000y","message":"x"})"},
                 {"NUL in the message", R"({"name":"x","message":"x\u0000y"})"},
                 {"not UTF-8", "{\"name\":\"x\",\"message\":\"\xff\"}"},
                 {"deep", R"({"name":"x","message":"y","z":)" + nested(70) + "}"}});
}

TEST_CASE("llmprep checks appID and messages as llmchat does (2)", "[validation]") {
  const Shared world;
  const std::string app = fresh_app();
  REQUIRE(world->post("/llmprep/", with_app(app, R"("messages":[{"role":"system","content":"kept"}])")).status() == 200);
  check_refused(*world, "/llmprep/", app,
                {{"empty", ""},
                 {"no appID", R"({"messages":[]})", "appID"},
                 {"appID too long", R"({"appID":")" + std::string(65, 'a') + R"(","messages":[]})", "appID"},
                 {"messages a string", with_app(app, R"("messages":"x")"), "messages"},
                 {"role missing", with_app(app, R"("messages":[{"content":"x"}])"), "role"},
                 {"content a number", with_app(app, R"("messages":[{"role":"user","content":"a"},{"role":"user","content":1}])"),
                  "content"},
                 {"NUL", with_app(app, R"("messages":[{"role":"user","content":"\u0000"}])")},
                 {"deep", with_app(app, R"("messages":[],"x":)" + nested(70))}});
  CHECK(joined(world->database.conversation(app)) == "system:kept");
}
