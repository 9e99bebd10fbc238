// Contract section 3.11: what of the reply is stored, and when.
#include <csignal>
#include <nlohmann/json.hpp>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

// What is stored for a reply of these tokens.
std::string stored_reply(World& world, const std::string& app) {
  const auto rows = world.database.wait_for_rows(app, 2);
  INFO(joined(rows));
  REQUIRE(rows.size() == 2);
  CHECK(rows[1][0] == "assistant");
  return rows[1][1];
}

std::string stored_for(const Shared& world, const std::vector<std::string>& tokens) {
  const std::string app = fresh_app();
  world->ollama.answer_with(answer_tokens(tokens));
  world->chat(chat_body(app, "x"));
  return stored_reply(*world, app);
}

}  // namespace

TEST_CASE("the reply is stored as assistant, each run of white space made one space, across lines too (3.11)", "[reply]") {
  const Shared world;
  CHECK(stored_for(world, {"Hello", ",", " world", "!"}) == "Hello, world!");
  CHECK(stored_for(world, {"a  ", "  b\n", "\n\tc", "d"}) == "a b cd");
  CHECK(stored_for(world, {"a \t\n\v\f\r b"}) == "a b");
  CHECK(stored_for(world, {"a", " ", "\n", " ", "b"}) == "a b");
  CHECK(stored_for(world, {"a", "", "", "b"}) == "ab");
  CHECK(stored_for(world, {"one\ntwo", "\r\n", "three"}) == "one two three");
}

TEST_CASE("white space at the start and end of the reply is made one space as well (3.11)", "[reply]") {
  const Shared world;
  CHECK(stored_for(world, {"\n\n a", " b ", " \n"}) == " a b ");
}

TEST_CASE("other spaces of Unicode are text (3.11)", "[reply]") {
  const Shared world;
  const std::string text = "a\xc2\xa0\xc2\xa0" "b\xe2\x80\x83\xe2\x80\x83" "c\xe2\x80\xa8" "d";
  CHECK(stored_for(world, {text}) == text);
}

TEST_CASE("escapes in Ollama's lines are stored as what they mean (3.11)", "[reply]") {
  const Shared world;
  const std::string app = fresh_app();
  world->ollama.answer_with(answer_lines(
      {R"({"message":{"role":"assistant","content":"\u00e9\ud83d\ude00\"\\\/\n\u0020x"},"done":false})", done_line()}));
  world->chat(chat_body(app, "x"));
  CHECK(stored_reply(*world, app) == "\xc3\xa9\xf0\x9f\x98\x80\"\\/ x");
}

TEST_CASE("a character split over two pieces is stored whole (3.11)", "[reply]") {
  const Shared world;
  const std::string app = fresh_app();
  const std::string line = token_line("caf\xc3\xa9 \xf0\x9f\x98\x80");
  const size_t cut = line.find('\xc3') + 1;
  world->ollama.answer_with(answer_pieces({line.substr(0, cut), line.substr(cut) + "\n" + done_line() + "\n"}));
  world->chat(chat_body(app, "x"));
  CHECK(stored_reply(*world, app) == "caf\xc3\xa9 \xf0\x9f\x98\x80");
}

TEST_CASE("--keep-whitespace stores the reply byte for byte (3.11)", "[reply]") {
  World world({{"--keep-whitespace"}});
  world.ollama.answer_with(answer_tokens({"\n a  ", "  b\n\n", "\tc\r\n "}));
  world.chat(chat_body("app", "x"));
  CHECK(stored_reply(world, "app") == "\n a    b\n\n\tc\r\n ");
}

TEST_CASE("the prompt is stored byte for byte, white space too (3.11)", "[reply]") {
  const Shared world;
  const std::string app = fresh_app(), text = " two  spaces \n\n and lines\t";
  world->chat(chat_body(app, text));
  CHECK(world->database.conversation(app)[0][1] == text);
}

TEST_CASE("a reply without text makes no row (3.11)", "[reply]") {
  const Shared world;
  const std::vector<std::vector<std::string>> replies = {
      {done_line()},
      {token_line(""), token_line(""), done_line()},
      {thinking_line("let me see"), thinking_line("hm"), done_line()},
      {R"({"message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{}}}]},"done":false})",
       done_line()}};
  for (const auto& lines : replies) {
    const std::string app = fresh_app();
    world->ollama.answer_with(answer_lines(lines));
    const auto events = world->chat(chat_body(app, "x"));
    CHECK(events.size() == lines.size());
    // A following request has waited for the storing.
    world->ollama.answer_with(answer_lines({done_line()}));
    world->chat(chat_body(app, "y"));
    CHECK(joined(world->database.conversation(app)) == "user:x|user:y");
  }
}

TEST_CASE("thinking is relayed and not stored (3.11)", "[reply]") {
  const Shared world;
  const std::string app = fresh_app();
  world->ollama.answer_with(answer_lines({thinking_line("let me see"), token_line("42"), done_line()}));
  CHECK(world->chat(chat_body(app, "x"))[0].data == thinking_line("let me see"));
  CHECK(stored_reply(*world, app) == "42");
}

TEST_CASE("text of the done line, and of lines after an error, is stored too (3.11)", "[reply]") {
  const Shared world;
  const std::string app = fresh_app();
  world->ollama.answer_with(answer_lines({token_line("a"), "garbage", token_line("b"),
                                          R"({"message":{"role":"assistant","content":"c"},"done":true})"}));
  world->chat(chat_body(app, "x"));
  CHECK(stored_reply(*world, app) == "abc");
}

TEST_CASE("a NUL in the reply does not cut what is stored (3.11)", "[reply]") {
  const Shared world;
  const std::string app = fresh_app();
  world->ollama.answer_with(answer_lines({R"({"message":{"role":"assistant","content":"abc\u0000def"},"done":false})", done_line()}));
  const auto events = world->chat(chat_body(app, "x"));
  INFO(shown(events));
  CHECK(events.size() == 2);
  const std::string stored = stored_reply(*world, app);
  INFO(stored);
  CHECK(stored.rfind("abc", 0) == 0);
  CHECK(stored.size() >= 6);
  CHECK(stored.substr(stored.size() - 3) == "def");
}

TEST_CASE("a reply of 2 MB is stored whole (3.11)", "[reply]") {
  const Shared world;
  const std::string token(20000, 'r');
  const std::string stored = stored_for(world, std::vector<std::string>(100, token));
  CHECK(stored == std::string(2000000, 'r'));
}

TEST_CASE("the request after a reply finds it in the history (3.11)", "[reply]") {
  const Shared world;
  const std::string app = fresh_app();
  for (int turn = 0; turn < 5; ++turn) {
    world->ollama.answer_with(answer_tokens({"reply " + std::to_string(turn)}));
    world->chat(chat_body(app, "prompt"));
    const auto exchange = world->ollama.exchanges().back();
    CHECK(nlohmann::json::parse(exchange->request().body)["messages"].size() == static_cast<size_t>(2 * turn + 1));
  }
}

TEST_CASE("SIGTERM in mid-stream stores what arrived and exits with 0 (3.11)", "[reply]") {
  World world({{"--drain", "0.3"}});
  world.ollama.answer_with(answer_then_wait({"got", "  this"}, Gate()));
  Stream stream(world.endpoint, chat_body("app", "mark-term"));
  stream.events(2);
  const auto before = Clock::now();
  world.stop();
  CHECK(ms_between(before, Clock::now()) < 5000);
  CHECK(joined(world.database.conversation("app")) == "user:mark-term|assistant:got this");
  CHECK(eventually([&] { return world.ollama.wait_for_request("mark-term")->client_left().has_value(); }));
}

TEST_CASE("SIGTERM lets a stream that ends within --drain come to its end (3.11)", "[reply]") {
  World world({{"--drain", "10"}});
  const Gate more;
  world.ollama.answer_with(answer_then_wait({"first"}, more));
  Stream stream(world.endpoint, chat_body("app", "x"));
  stream.events(1);
  world.chatterd->signal(SIGTERM);
  // It no longer takes connections, which shows that the signal was seen.
  REQUIRE(eventually([&] { return !try_connect("127.0.0.1", world.endpoint.port, Deadline(500)).is_open(); }));
  more.open();
  const auto events = stream.rest();
  INFO(shown(events));
  CHECK(events.size() == 2);
  world.stop();
  CHECK(joined(world.database.conversation("app")) == "user:x|assistant:first");
}

TEST_CASE("an answer that begins after SIGTERM says that its connection closes (3.11)", "[reply]") {
  World world({{"--drain", "10"}});
  const Gate loaded;
  world.ollama.answer_with([loaded](Conn& conn) {
    conn.wait(loaded);
    answer_tokens({"late"})(conn);
  });
  Connection connection(world.endpoint);
  connection.send(bytes_of({"POST", "/llmchat/", chat_body("app", "mark-late"), {}}));
  world.ollama.wait_for_request("mark-late");
  world.chatterd->signal(SIGTERM);
  REQUIRE(eventually([&] { return !try_connect("127.0.0.1", world.endpoint.port, Deadline(500)).is_open(); }));
  loaded.open();
  const Response response = connection.read_response();
  INFO(response.text());
  CHECK(response.head.header("Connection") == "close");
  CHECK(response.head.header("Keep-Alive").empty());
  CHECK(parse_sse(response.body).size() == 2);
  world.stop();
}

TEST_CASE("a database that is away when the stream ends gets the reply once it is back (3.11)", "[reply]") {
  World world({{"--store-retry", "20"}, {}, true, true});
  world.expect_errors();
  const Gate more;
  world.ollama.answer_with(answer_then_wait({"kept"}, more));
  Stream stream(world.endpoint, chat_body("app", "x"));
  stream.events(1);
  world.database_proxy->outage();
  more.open();
  CHECK(stream.events(2)[1].data == done_line());
  // Long enough for a first try to have failed; its being early would only make the test weaker.
  CHECK(world.get("/getchatts/").status() == 503);
  world.database_proxy->pass();
  CHECK(joined(world.database.wait_for_rows("app", 2)) == "user:x|assistant:kept");
  const auto events = stream.rest();
  INFO(shown(events));
  CHECK(events.size() == 2);
}

TEST_CASE("a reply that can't be stored within --store-retry becomes an error event (3.11)", "[reply]") {
  World world({{"--store-retry", "0.5", "--db-timeout", "0.3"}, {}, true, true});
  world.expect_errors();
  for (const bool frozen : {false, true}) {
    INFO((frozen ? "the database does not answer" : "the database is gone"));
    world.database_proxy->pass();
    REQUIRE(eventually([&] { return world.get("/getchatts/").status() == 200; }));
    const Gate more;
    world.ollama.answer_with(answer_then_wait({"lost"}, more));
    Stream stream(world.endpoint, chat_body(fresh_app(), "x"));
    stream.events(1);
    frozen ? world.database_proxy->freeze() : world.database_proxy->outage();
    more.open();
    const auto events = stream.rest();
    INFO(shown(events));
    REQUIRE(events.size() == 3);
    CHECK(events[1].data == done_line());
    error_event_text(events[2]);
  }
  world.database_proxy->pass();
}

TEST_CASE("a reply that the database refuses becomes an error event at once (3.11)", "[reply]") {
  World world;
  world.expect_errors();
  world.database.run("ALTER TABLE chatts ADD CHECK (message <> 'forbidden')");
  world.ollama.answer_with(answer_tokens({"forbidden"}));
  const auto before = Clock::now();
  const auto events = world.chat(chat_body("app", "x"));
  INFO(shown(events));
  REQUIRE(events.size() == 3);
  error_event_text(events[2]);
  CHECK(ms_between(before, Clock::now()) < 10000);
  CHECK(joined(world.database.conversation("app")) == "user:x");
}
