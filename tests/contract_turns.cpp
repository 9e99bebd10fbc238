// Contract sections 3.13 to 3.15: requests at the same time.
#include <nlohmann/json.hpp>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

std::string prep_body(const std::string& app) {
  return R"({"appID":")" + app + R"(","messages":[{"role":"system","content":"new"}]})";
}

// Answers by the gate whose mark the request holds; without a mark at once.
Script by_mark(std::vector<std::pair<std::string, Gate>> gates) {
  return [gates](Conn& conn) {
    for (const auto& [mark, gate] : gates) {
      if (conn.request().body.find(mark) == std::string::npos) continue;
      return answer_then_wait({"reply"}, gate)(conn);
    }
    answer_tokens({"at once"})(conn);
  };
}

}  // namespace

TEST_CASE("a second request for a conversation waits for the first and has its reply in the history (3.13)", "[turns]") {
  World world({{"--turn-wait", "20"}});
  const Gate first_done;
  world.ollama.answer_with(by_mark({{"\"first\"}]", first_done}}));
  Stream first(world.endpoint, chat_body("app", "first"));
  first.events(1);
  Stream second(world.endpoint, chat_body("app", "second"));
  CHECK(second.connection.stays_silent(300));
  CHECK(world.ollama.exchanges().size() == 1);
  CHECK(joined(world.database.conversation("app")) == "user:first");
  first_done.open();
  first.rest();
  second.rest();
  CHECK(joined(world.database.wait_for_rows("app", 4)) == "user:first|assistant:reply|user:second|assistant:at once");
  const auto sent = nlohmann::json::parse(world.ollama.exchanges()[1]->request().body)["messages"];
  CHECK(sent.size() == 3);
}

TEST_CASE("a second request that has waited for --turn-wait is 409 and nothing of it is stored (3.13)", "[turns]") {
  World world({{"--turn-wait", "0.4"}});
  const Gate done;
  world.ollama.answer_with(answer_then_wait({"reply"}, done));
  Stream first(world.endpoint, chat_body("app", "first"));
  first.events(1);
  const auto before = Clock::now();
  check_error(world.post("/llmchat/", chat_body("app", "second")), 409);
  CHECK(ms_between(before, Clock::now()) >= 390);
  check_error(world.post("/llmprep/", prep_body("app")), 409);
  CHECK(joined(world.database.conversation("app")) == "user:first");
  done.open();
  first.rest();
  CHECK(world.post("/llmchat/", chat_body("app", "third")).status() == 200);
  CHECK(joined(world.database.wait_for_rows("app", 4)) == "user:first|assistant:reply|user:third|assistant:reply");
}

TEST_CASE("llmprep waits for the conversation's stream and then replaces it, the reply too (3.13)", "[turns]") {
  World world({{"--turn-wait", "20"}});
  const Gate done;
  world.ollama.answer_with(answer_then_wait({"reply"}, done));
  Stream first(world.endpoint, chat_body("app", "first"));
  first.events(1);
  Connection prep(world.endpoint);
  prep.send(bytes_of({"POST", "/llmprep/", prep_body("app"), {}}));
  CHECK(prep.stays_silent(300));
  done.open();
  first.rest();
  CHECK(prep.read_response().body == "{}");
  CHECK(joined(world.database.conversation("app")) == "system:new");
}

TEST_CASE("a llmprep that has to wait counts as a stream, one that has not does not (3.13, 3.15)", "[turns]") {
  World world({{"--turn-wait", "20", "--max-streams", "1"}});
  const Gate done;
  world.ollama.answer_with(answer_then_wait({"reply"}, done));
  Stream first(world.endpoint, chat_body("app", "first"));
  first.events(1);
  CHECK(world.post("/llmprep/", prep_body("other")).status() == 200);
  check_error(world.post("/llmprep/", prep_body("app")), 503);
  done.open();
  first.rest();
  CHECK(world.post("/llmprep/", prep_body("app")).status() == 200);
}

TEST_CASE("different conversations do not wait for each other (3.13)", "[turns]") {
  const Shared world;
  const Gate done;
  const std::string mark = fresh_mark();
  world->ollama.answer_with(by_mark({{mark, done}}));
  Stream first(world->endpoint, chat_body(fresh_app(), mark));
  first.events(1);
  CHECK(world->post("/llmchat/", chat_body(fresh_app(), "y")).status() == 200);
  CHECK(world->post("/llmprep/", prep_body(fresh_app())).status() == 200);
  done.open();
  first.rest();
}

TEST_CASE("a conversation is free again after its stream failed or its client left (3.13)", "[turns]") {
  const Shared world;
  const std::string app = fresh_app();
  const std::vector<Script> failures = {
      [](Conn& conn) { conn.fin(); },
      answer_document(404, error_line("no such model")),
      [](Conn& conn) {
        conn.stream_head();
        conn.line(token_line("a"));
        conn.fin();
      }};
  for (const Script& script : failures) {
    world->ollama.answer_with(script);
    world->post("/llmchat/", chat_body(app, "x"));
  }
  world->ollama.answer_with(answer_then_wait({"a"}, Gate()));
  {
    Stream leaver(world->endpoint, chat_body(app, "x"));
    leaver.events(1);
  }
  world->ollama.answer_with(answer_tokens({"ok"}));
  CHECK(world->post("/llmchat/", chat_body(app, "x")).status() == 200);
}

TEST_CASE("several that wait for one conversation all get their turn (3.13)", "[turns]") {
  World world({{"--turn-wait", "20"}});
  world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    conn.line(token_line("re"));
    conn.pause(15);
    conn.line(token_line("ply"));
    conn.line(done_line());
    conn.end_chunks();
  });
  std::atomic<int> ok{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&] {
      try {
        ok += world.post("/llmchat/", chat_body("app", "prompt")).status() == 200 ? 1 : 0;
      } catch (const std::exception&) {
        // Counted as not ok.
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(ok == 8);
  std::string expected;
  for (int i = 0; i < 8; ++i) expected += std::string(i == 0 ? "" : "|") + "user:prompt|assistant:reply";
  CHECK(joined(world.database.wait_for_rows("app", 16)) == expected);
}

TEST_CASE("a client that leaves while it waits for its turn is not served (3.12)", "[turns]") {
  World world({{"--turn-wait", "20"}});
  const Gate done;
  world.ollama.answer_with(by_mark({{"\"first\"}]", done}}));
  Stream first(world.endpoint, chat_body("app", "first"));
  first.events(1);
  {
    Stream leaver(world.endpoint, chat_body("app", "left"));
    CHECK(leaver.connection.stays_silent(100));
  }
  done.open();
  first.rest();
  CHECK(world.post("/llmchat/", chat_body("app", "next")).status() == 200);
  CHECK(joined(world.database.wait_for_rows("app", 4)) == "user:first|assistant:reply|user:next|assistant:at once");
  CHECK(world.ollama.exchanges().size() == 2);
}

TEST_CASE("no database connection is held while Ollama generates (3.14)", "[turns]") {
  World world({{"--db-pool", "1"}});
  const Gate done;
  world.ollama.answer_with(answer_then_wait({"reply"}, done));
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 5; ++i) {
    streams.push_back(std::make_unique<Stream>(world.endpoint, chat_body(fresh_app(), "x")));
    streams.back()->events(1);
  }
  CHECK(world.get("/getchatts/").status() == 200);
  CHECK(world.post("/postchatt/", R"({"name":"a","message":"b"})").status() == 200);
  CHECK(world.database.value("SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND usename = $2 AND state <> 'idle'",
                             {world.database.name(), Database::owner()}) == "0");
  done.open();
  for (const auto& stream : streams) CHECK(stream->rest().size() == 2);
}

TEST_CASE("more streams than --max-streams are 503 with Retry-After at once, and nothing is stored (3.15)", "[turns]") {
  World world({{"--max-streams", "2"}});
  const Gate done;
  world.ollama.answer_with(answer_then_wait({"reply"}, done));
  Stream first(world.endpoint, chat_body("one", "x")), second(world.endpoint, chat_body("two", "x"));
  first.events(1);
  second.events(1);
  const auto before = Clock::now();
  const Response refused = world.post("/llmchat/", chat_body("three", "x"));
  check_error(refused, 503);
  CHECK_FALSE(refused.head.header("Retry-After").empty());
  CHECK(ms_between(before, Clock::now()) < 2000);
  CHECK(world.database.conversation("three").empty());
  CHECK(world.post("/llmprompt/", R"({"model":"m","prompt":"x"})").status() == 503);
  CHECK(world.get("/getchatts/").status() == 200);
  done.open();
  first.rest();
  second.rest();
  REQUIRE(eventually([&] { return world.post("/llmchat/", chat_body(fresh_app(), "x")).status() == 200; }));
}

TEST_CASE("a hundred streams at once all end, each with its own tokens (3.15)", "[turns]") {
  World world({{"--max-streams", "200"}});
  constexpr size_t kStreams = 100;
  world.ollama.answer_with([](Conn& conn) {
    const std::string& body = conn.request().body;
    const size_t at = body.find("mine-");
    conn.stream_head();
    for (int i = 0; i < 3; ++i) {
      conn.line(token_line(body.substr(at, 8)));
      conn.pause(100);
    }
    conn.line(done_line());
    conn.end_chunks();
  });
  std::vector<std::unique_ptr<Stream>> streams;
  for (size_t i = 0; i < kStreams; ++i) {
    streams.push_back(std::make_unique<Stream>(world.endpoint, chat_body(fresh_app(), "mine-" + std::to_string(100 + i))));
  }
  for (size_t i = 0; i < kStreams; ++i) {
    const std::string token = token_line("mine-" + std::to_string(100 + i));
    streams[i]->rest();
    CHECK(streams[i]->bytes == data_events({token, token, token, done_line()}));
  }
}

TEST_CASE("clients that connect and say nothing do not keep others waiting (3.15)", "[turns]") {
  World world;
  std::vector<Fd> silent;
  for (int i = 0; i < 150; ++i) silent.push_back(connect_to("127.0.0.1", world.endpoint.port, Deadline(kPatienceMs)));
  const auto before = Clock::now();
  CHECK(world.get("/").status() == 200);
  CHECK(ms_between(before, Clock::now()) < 3000);
}
