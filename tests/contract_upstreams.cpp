// Several Ollamas (--ollama with several addresses; the rules are those of upstreams.hpp and ollama.hpp),
// within contract 3.5, 3.9, 3.11 and 3.12, which hold whichever of them answers.
#include <sys/socket.h>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

// Two Ollamas and a chatterd that has both; the second answers "from b" until it is told otherwise.
struct Two {
  explicit Two(const Arguments& more = {}) : world({with({"--ollama", a.url() + "," + b.url()}, more)}) {
    a.answer_with(answer_tokens({"from a"}));
    b.answer_with(answer_tokens({"from b"}));
  }
  static Arguments with(Arguments arguments, const Arguments& more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  // A turn that is answered by "a" or "b", or else its status.
  std::string turn() {
    const Response response = world.post("/llmchat/", chat_body(fresh_app(), "x"));
    INFO(response.text());
    if (response.status() != 200) return std::to_string(response.status());
    CHECK(count_of(response.body, "\"from ") == 1);
    CHECK_FALSE(holds(response.body, "event: error"));
    return holds(response.body, "\"from a\"") ? "a" : "b";
  }

  ScriptedOllama a, b;
  World world;
};

const Script kHangUp = [](Conn& conn) { conn.fin(); };
const Script kBusy = answer_document(503, error_line("server busy, please try again.  maximum pending requests exceeded"));
const Script kNoModel = answer_document(404, error_line("model 'm' not found"));

// How often an address may be asked that fails all the time, so long after its first failure: at once, and
// when rests of 1, 2, 4, ... s are over.
size_t asked_at_most(double ms) {
  size_t count = 1;
  for (double rest_ms = 1000; ms >= rest_ms; rest_ms *= 2, ++count) ms -= rest_ms;
  return count;
}

}  // namespace

TEST_CASE("turns one after the other all go to the Ollama named first, whose model is warm", "[upstreams]") {
  Two two;
  for (int i = 0; i < 6; ++i) CHECK(two.turn() == "a");
  CHECK(two.b.exchanges().empty());
}

TEST_CASE("a turn goes to the Ollama with the fewest answers under way", "[upstreams]") {
  ScriptedOllama a, b, c;
  World world({{"--ollama", a.url() + "," + b.url() + ", " + c.url() + "/api"}});
  const std::vector<ScriptedOllama*> all = {&a, &b, &c};
  std::vector<Gate> gates(all.size());
  for (size_t i = 0; i < all.size(); ++i) all[i]->answer_with(answer_then_wait({"t"}, gates[i]));
  std::vector<std::unique_ptr<Stream>> streams;
  const auto begin = [&] {
    streams.push_back(std::make_unique<Stream>(world.endpoint, chat_body(fresh_app(), "x")));
    streams.back()->events(1);
  };
  for (size_t i = 0; i < 6; ++i) {
    begin();
    INFO("turn " << i);
    CHECK(all[i % 3]->exchanges().size() == i / 3 + 1);
  }
  // The one that gets free first gets the next.
  gates[1].open();
  streams[1]->rest();
  streams[4]->rest();
  b.answer_with(answer_then_wait({"t"}, gates[0]));
  begin();
  CHECK(b.exchanges().size() == 3);
  for (const Gate& gate : gates) gate.open();
}

TEST_CASE("an Ollama that refuses connections is passed over, said once, and used when it is back", "[upstreams]") {
  ScriptedOllama first, other;
  TcpProxy proxy("127.0.0.1", first.port());
  const std::string url = url_of(proxy.port());
  first.answer_with(answer_tokens({"back"}));
  other.answer_with(answer_tokens({"from the other"}));
  World world({{"--ollama", url + "," + other.url()}});
  proxy.outage();
  for (int i = 0; i < 5; ++i) {
    const Response response = world.post("/llmchat/", chat_body(fresh_app(), "x"));
    CHECK(response.body == data_events({token_line("from the other"), done_line()}));
  }
  CHECK(other.exchanges().size() == 5);
  // It may have been found by the look at the start, which was cut off rather than refused.
  CHECK_FALSE(world.chatterd->wait_for_log({"ollama_away", url}).empty());
  proxy.pass();
  const auto is_back = [&] { return holds(world.post("/llmchat/", chat_body(fresh_app(), "x")).body, "\"back\""); };
  CHECK(eventually(is_back));
  CHECK_FALSE(world.chatterd->wait_for_log({"ollama_back", url}).empty());
  CHECK(is_back());
  CHECK(count_of(world.chatterd->err(), "ollama_away") == 1);
  CHECK(count_of(world.chatterd->err(), "ollama_back") == 1);
}

TEST_CASE("the start says of each Ollama that is away, and of no other (6)", "[upstreams]") {
  ScriptedOllama one;
  const Fd nobody = bind_loopback(0), nobody_either = bind_loopback(0);
  const std::string first = url_of(nobody), last = url_of(nobody_either);
  World world({{"--ollama", first + "," + one.url() + "," + last}});
  for (const std::string& url : {first, last}) CHECK_FALSE(world.chatterd->wait_for_log({"ollama_away", url, "refused"}).empty());
  CHECK(count_of(world.chatterd->err(), "ollama_away") == 2);
}

TEST_CASE("an Ollama that hangs up before its answer is passed over, and left alone for a while", "[upstreams]") {
  Two two;
  two.a.answer_with(kHangUp);
  const auto begun = Clock::now();
  for (int i = 0; i < 20; ++i) CHECK(two.turn() == "b");
  const double ms = ms_between(begun, Clock::now());
  INFO("20 turns in " << ms << " ms");
  CHECK(two.a.exchanges().size() <= asked_at_most(ms));
  CHECK(count_of(two.world.chatterd->err(), "ollama_away") == 1);
  two.a.answer_with(answer_tokens({"from a"}));
  CHECK(eventually([&] { return two.turn() == "a"; }));
  CHECK_FALSE(two.world.chatterd->wait_for_log({"ollama_back", two.a.url()}).empty());
}

TEST_CASE("an Ollama that takes no connection in time is passed over", "[upstreams]") {
  // A full backlog: the kernel drops what more wants to connect, as a machine does that is switched off.
  const Fd full = bind_loopback(0);
  REQUIRE(::listen(full.get(), 0) == 0);
  const Fd first = connect_to("127.0.0.1", port_of(full), Deadline(kPatienceMs));
  std::vector<Fd> more;
  while (more.size() < 8) {
    more.push_back(try_connect("127.0.0.1", port_of(full), Deadline(200)));
    if (!more.back().is_open()) break;
  }
  ScriptedOllama other;
  other.answer_with(answer_tokens({"from the other"}));
  World world({{"--ollama", url_of(full) + "," + other.url()}});
  const auto begun = Clock::now();
  CHECK(holds(world.post("/llmchat/", chat_body(fresh_app(), "x")).body, "from the other"));
  const double ms = ms_between(begun, Clock::now());
  INFO("after " << ms << " ms");
  // Both together have the time that one has alone; the next turn needs none.
  CHECK(ms < 4500);
  const auto again = Clock::now();
  CHECK(holds(world.post("/llmchat/", chat_body(fresh_app(), "x")).body, "from the other"));
  CHECK(ms_between(again, Clock::now()) < 1000);
}

TEST_CASE("however an Ollama dies before its head is whole, another gives the one reply that is stored (3.11)", "[upstreams]") {
  const std::vector<Script> ends = {kHangUp, [](Conn& conn) { conn.rst(); },
                                    [](Conn& conn) { conn.raw("HTTP/1.1 200 OK\r\nContent-Ty"); conn.fin(); },
                                    [](Conn& conn) { conn.raw("this is not HTTP\r\n\r\n"); conn.fin(); }};
  for (const Script& end : ends) {
    Two two;
    two.a.answer_with(end);
    const std::string app = fresh_app(), mark = fresh_mark();
    const Response response = two.world.post("/llmchat/", chat_body(app, mark));
    INFO(response.text());
    CHECK(response.status() == 200);
    CHECK(response.body == data_events({token_line("from b"), done_line()}));
    CHECK(joined(two.world.database.wait_for_rows(app, 2)) == "user:" + mark + "|assistant:from b");
    REQUIRE(two.a.exchanges().size() == 1);
    REQUIRE(two.b.exchanges().size() == 1);
    // The other gets the same request, but for its own name.
    CHECK(two.b.exchanges()[0]->request().body == two.a.exchanges()[0]->request().body);
    CHECK("http://" + two.b.exchanges()[0]->request().header("host") == two.b.url());
  }
}

TEST_CASE("an Ollama that dies in mid-stream gets an error event, and nobody else is asked (3.9, 3.11)", "[upstreams]") {
  Two two;
  two.a.answer_with([](Conn& conn) {
    conn.stream_head();
    conn.line(token_line("half"));
    conn.rst();
  });
  const std::string app = fresh_app();
  const auto events = two.world.chat(chat_body(app, "x"));
  INFO(shown(events));
  REQUIRE(events.size() == 2);
  error_event_text(events[1]);
  CHECK(joined(two.world.database.wait_for_rows(app, 2)) == "user:x|assistant:half");
  CHECK(two.b.exchanges().empty());
}

TEST_CASE("a turn waits where its model is being loaded; when that Ollama dies it goes to another (3.5)", "[upstreams]") {
  Two two({"--ollama-grace", "0.2"});
  const Gate die;
  two.a.answer_with([die](Conn& conn) {
    conn.wait(die);
    conn.fin();
  });
  const std::string app = fresh_app();
  Stream stream(two.world.endpoint, chat_body(app, "x"));
  stream.expect_ok();
  CHECK(two.b.exchanges().empty());
  die.open();
  const auto events = stream.rest();
  INFO(shown(events));
  REQUIRE(events.size() == 2);
  CHECK(events[0].data == token_line("from b"));
  CHECK(joined(two.world.database.wait_for_rows(app, 2)) == "user:x|assistant:from b");
}

TEST_CASE("an Ollama that is busy or lacks the model is passed over, but does not rest (3.5)", "[upstreams]") {
  Two two;
  for (const Script& refuse : {kBusy, kNoModel}) {
    two.a.answer_with(refuse);
    const size_t before = two.a.exchanges().size();
    for (int i = 0; i < 3; ++i) CHECK(two.turn() == "b");
    CHECK(two.a.exchanges().size() == before + 3);
    const Response prompt = two.world.post("/llmprompt/", R"({"model":"m","prompt":"x"})");
    CHECK(holds(prompt.body, "from b"));
  }
  CHECK(count_of(two.world.chatterd->err(), "ollama_away") == 0);
}

TEST_CASE("when no Ollama takes a turn, a refusal is the answer, and busy before unknown (3.5)", "[upstreams]") {
  struct Case {
    Script a, b;
    int status;
    const char* text;
  };
  const std::vector<Case> cases = {{kBusy, kBusy, 503, "server busy"},      {kNoModel, kNoModel, 404, "model 'm' not found"},
                                   {kBusy, kNoModel, 503, "server busy"},   {kNoModel, kBusy, 503, "server busy"},
                                   {kNoModel, kHangUp, 404, "model 'm'"},   {kHangUp, kNoModel, 404, "model 'm'"},
                                   {kBusy, kHangUp, 503, "server busy"},    {kHangUp, kBusy, 503, "server busy"},
                                   {kHangUp, kHangUp, 502, "can't be reached"}};
  for (size_t i = 0; i < cases.size(); ++i) {
    INFO("case " << i);
    Two two;
    two.a.answer_with(cases[i].a);
    two.b.answer_with(cases[i].b);
    const Response response = two.world.post("/llmchat/", chat_body("app", "x"));
    check_error(response, cases[i].status);
    CHECK(holds(response.body, cases[i].text));
    CHECK(response.head.header("Retry-After").empty() == (cases[i].status != 503));
    CHECK(joined(two.world.database.conversation("app")) == "user:x");
  }
}

TEST_CASE("what is wrong with the request itself is asked of one Ollama only (3.5)", "[upstreams]") {
  Two two;
  for (const int status : {400, 500}) {
    two.a.answer_with(answer_document(status, error_line("no")));
    CHECK(two.turn() == std::to_string(status == 400 ? 400 : 502));
  }
  CHECK(two.b.exchanges().empty());
}

TEST_CASE("when all have failed each turn tries each once, so the first that is back is used at once (3.5)", "[upstreams]") {
  for (const bool first_is_back : {true, false}) {
    Two two;
    two.a.answer_with(kHangUp);
    two.b.answer_with(kHangUp);
    for (size_t i = 1; i <= 3; ++i) {
      CHECK(two.turn() == "502");
      CHECK(two.a.exchanges().size() == i);
      CHECK(two.b.exchanges().size() == i);
    }
    (first_is_back ? two.a : two.b).answer_with(answer_tokens({first_is_back ? "from a" : "from b"}));
    CHECK(two.turn() == (first_is_back ? "a" : "b"));
  }
}

TEST_CASE("a client that leaves ends its own answer within a second, and only that (3.12)", "[upstreams]") {
  Two two;
  const Gate gate;
  for (ScriptedOllama* one : {&two.a, &two.b}) one->answer_with(answer_then_wait({"t"}, gate));
  Stream stays(two.world.endpoint, chat_body("stays", "x"));
  stays.events(1);
  Stream leaves(two.world.endpoint, chat_body("leaves", "x"));
  leaves.events(1);
  const auto exchange = two.b.wait_for_request("");
  const auto left = Clock::now();
  leaves.connection.close();
  CHECK(ollama_saw_it_after_ms(*exchange, left) < 1000);
  CHECK_FALSE(two.a.wait_for_request("")->client_left().has_value());
  gate.open();
  CHECK(stays.rest().size() == 2);
}

TEST_CASE("a client that leaves after its turn was moved ends the answer where that is (3.12)", "[upstreams]") {
  Two two;
  two.a.answer_with(kHangUp);
  two.b.answer_with([](Conn& conn) { conn.wait_until_client_leaves(); });
  Connection connection(two.world.endpoint);
  connection.send(bytes_of({"POST", "/llmchat/", chat_body("app", "x"), {}}));
  const auto exchange = two.b.wait_for_request("");
  const auto left = Clock::now();
  connection.close();
  CHECK(ollama_saw_it_after_ms(*exchange, left) < 1000);
  CHECK(joined(two.world.database.conversation("app")) == "user:x");
}

TEST_CASE("--check says of each Ollama whether it is usable (6)", "[upstreams]") {
  const Shared world;
  const ScriptedOllama other;
  const auto check = [&](const std::string& second) {
    Arguments arguments = usual_arguments(world->database.conninfo(), world->ollama.url() + "," + second);
    arguments.emplace_back("--check");
    return run_chatterd(arguments);
  };
  const Finished both = check(other.url());
  INFO(both.text());
  CHECK(both.status == 0);
  CHECK(count_of(both.out, "ok    Ollama") == 2);
  const Fd nobody = bind_loopback(0);
  const Finished one = check(url_of(nobody));
  INFO(one.text());
  CHECK(one.status == 1);
  CHECK(holds(one.out, "ok    Ollama         " + world->ollama.url()));
  CHECK(holds(one.out, "FAIL  Ollama         " + url_of(nobody) + " does not answer"));
}

TEST_CASE("an address of the list that is wrong is a wrong option (6)", "[upstreams]") {
  for (const char* wrong : {"http://a,b", "http://a,", "http://a,,http://c"}) {
    const Finished finished = run_chatterd({"--http", "--ollama", wrong});
    INFO(finished.text());
    CHECK(finished.status == 2);
    CHECK(holds(finished.err, "--ollama: address 2 of the list"));
  }
}
