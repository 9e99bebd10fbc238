// Contract sections 3.7 to 3.12 for answers of many lines that arrive apart: after the first few, a stream is
// no longer served by a thread of its own (pump.hpp), and nothing may show it.
#include <algorithm>
#include <atomic>
#include <csignal>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

using End = void (*)(Conn&);

// More than the waits after which a stream is lent to the pump.
constexpr size_t kMany = 20;

// The lines that each answer here begins with, every one sent once the test has read the one before: so
// chatterd has to wait for each. A handle, like Gate.
class ManyLines {
 public:
  static std::string token(size_t i) { return "t" + std::to_string(i) + " "; }
  static std::string text() {
    std::string all;
    for (size_t i = 0; i < kMany; ++i) all += token(i);
    return all;
  }
  static std::vector<std::string> lines() {
    std::vector<std::string> all;
    for (size_t i = 0; i < kMany; ++i) all.push_back(token_line(token(i)));
    return all;
  }

  [[nodiscard]] Script then(const Script& rest) const {
    return [read = read_, rest](Conn& conn) {
      conn.stream_head();
      for (size_t i = 0; i < kMany; ++i) {
        conn.line(token_line(token(i)));
        conn.wait(read[i]);
      }
      rest(conn);
    };
  }
  void read(Stream& stream) const {
    for (size_t i = 0; i < kMany; ++i) {
      CHECK(stream.events(i + 1).back().data == token_line(token(i)));
      read_[i].open();
    }
  }

  // Opened one after the other, by read() or by the test.
  [[nodiscard]] const std::vector<Gate>& gates() const { return read_; }

 private:
  std::vector<Gate> read_ = std::vector<Gate>(kMany);
};

void silence(Conn& conn) { conn.wait_until_client_leaves(); }

void end_well(Conn& conn) {
  conn.line(done_line());
  conn.end_chunks();
}

// For texts that are too long to be shown when they differ.
bool same(const std::string& a, const std::string& b) { return a == b; }

// How long after `left` Ollama saw the connection close; asserts that it did.
double ollama_saw_it_after_ms(const Exchange& exchange, Clock::time_point left) {
  REQUIRE(eventually([&] { return exchange.client_left().has_value(); }));
  return ms_between(left, *exchange.client_left());
}

// The events of a stream that ends badly after the many lines; asserts that one error event, and only one,
// says so, and that what came before is stored.
void expect_one_error(World& world, Stream& stream, const std::string& app, const std::string& prompt) {
  const auto events = stream.rest();
  INFO(shown(events));
  REQUIRE(events.size() == kMany + 1);
  error_event_text(events.back());
  CHECK(joined(world.database.wait_for_rows(app, 2)) == "user:" + prompt + "|assistant:" + ManyLines::text());
}

// Lines by which a client's socket fills up when it does not read, and how many of them are out.
class Flood {
 public:
  static constexpr size_t kLines = 450;  // 27 MB: more than the buffers of all sockets on the way
  static std::string line(size_t i) { return token_line(std::to_string(i) + std::string(60000, 'f')); }
  static std::vector<std::string> lines() {
    std::vector<std::string> all;
    for (size_t i = 0; i < kLines; ++i) all.push_back(line(i));
    return all;
  }

  [[nodiscard]] Script script() const {
    return [sent = sent_](Conn& conn) {
      for (size_t i = 0; i < kLines; ++i) {
        conn.line(line(i));
        ++*sent;
      }
      end_well(conn);
    };
  }
  // Waits until it stands still, because nothing is read at the other end.
  void wait_until_stuck() const {
    size_t last = 0;
    Clock::time_point since = Clock::now();
    REQUIRE(eventually([&] {
      if (*sent_ != last) since = Clock::now();
      last = *sent_;
      return last > 0 && ms_between(since, Clock::now()) > 150;
    }));
    REQUIRE(last < kLines);
  }

 private:
  std::shared_ptr<std::atomic<size_t>> sent_ = std::make_shared<std::atomic<size_t>>(0);
};

}  // namespace

TEST_CASE("each of many lines is written as soon as it has arrived, byte for byte (3.7)", "[long]") {
  for (const bool tls : {true, false}) {
    INFO((tls ? "HTTPS" : "HTTP"));
    World world({{}, {}, tls});
    const ManyLines many;
    world.ollama.answer_with(many.then(end_well));
    Stream stream(world.endpoint, chat_body("app", "x"));
    many.read(stream);
    CHECK(stream.rest().size() == kMany + 1);
    auto lines = ManyLines::lines();
    lines.push_back(done_line());
    CHECK(stream.bytes == data_events(lines));
    CHECK(joined(world.database.wait_for_rows("app", 2)) == "user:x|assistant:" + ManyLines::text());
  }
}

TEST_CASE("after many lines too a line may come in pieces, and several in one (3.7)", "[long]") {
  const Shared world;
  const ManyLines many;
  const std::vector<std::string> lines = {token_line("caf\xc3\xa9 "), token_line("b "), R"({"a":1.0,"b":"\u00e9\/"})", token_line("c"), done_line()};
  const size_t cut = lines[0].find('\xc3') + 1;
  const Gate first, second;
  world->ollama.answer_with(many.then([=](Conn& conn) {
    conn.chunk(lines[0].substr(0, cut));
    conn.pause(20);
    conn.chunk(lines[0].substr(cut));  // its line end is still missing
    conn.pause(20);
    conn.chunk("\n" + lines[1] + "\n" + lines[2].substr(0, 5));
    conn.wait(first);
    // In the midst of a chunk, and of its size.
    const std::string rest = lines[2].substr(5) + "\n\n" + lines[3] + "\n";
    char size[16];
    std::snprintf(size, sizeof size, "%08zx\r\n", rest.size());
    const std::string chunk = size + rest + "\r\n";
    for (size_t at = 0; at < chunk.size(); at += 7) {
      conn.raw(chunk.substr(at, 7));
      conn.pause(2);
    }
    conn.wait(second);
    conn.chunk(lines[4]);
    conn.end_chunks();
  }));
  Stream stream(world->endpoint, chat_body(fresh_app(), "x"));
  many.read(stream);
  CHECK(stream.events(kMany + 2).back().data == lines[1]);
  first.open();
  CHECK(stream.events(kMany + 4).back().data == lines[3]);
  second.open();
  stream.rest();
  std::vector<std::string> all = ManyLines::lines();
  all.insert(all.end(), lines.begin(), lines.end());
  CHECK(stream.bytes == data_events(all));
}

TEST_CASE("after many lines a line that is not a JSON object becomes an error event, and the next follow (3.8)", "[long]") {
  const Shared world;
  const ManyLines many;
  world->ollama.answer_with(many.then([](Conn& conn) {
    conn.line("garbage");
    conn.pause(10);
    conn.line(error_line("oh"));
    conn.pause(10);
    end_well(conn);
  }));
  Stream stream(world->endpoint, chat_body(fresh_app(), "x"));
  many.read(stream);
  const auto events = stream.rest();
  INFO(shown(events));
  REQUIRE(events.size() == kMany + 3);
  error_event_text(events[kMany]);
  CHECK(error_event_text(events[kMany + 1]) == "oh");
  CHECK(events.back().data == done_line());
}

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
    world.ollama.answer_with(many.then([lines_come](Conn& conn) {
      while (lines_come) {
        conn.line(token_line("more "));
        conn.pause(30);
      }
      silence(conn);
    }));
    Stream stream(world.endpoint, chat_body(app, mark));
    many.read(stream);
    const auto events = stream.rest();
    REQUIRE(events.size() >= kMany + 1);
    for (size_t i = kMany; i + 1 < events.size(); ++i) CHECK(events[i].data == token_line("more "));
    error_event_text(events.back());
    ollama_saw_it_after_ms(*world.ollama.wait_for_request(mark), Clock::now());
    CHECK(world.database.wait_for_rows(app, 2)[1][1].rfind(ManyLines::text() + (lines_come ? "more " : ""), 0) == 0);
  }
}

TEST_CASE("an answer of many lines is cut at --max-reply (3.9)", "[long]") {
  World world({{"--max-reply", "20000"}});
  world.expect_errors();
  const ManyLines many;
  world.ollama.answer_with(many.then([](Conn& conn) {
    for (;;) {
      conn.line(token_line(std::string(1000, 'm')));
      conn.pause(3);
    }
  }));
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

TEST_CASE("a client that leaves after many lines ends the request to Ollama within a second (3.12)", "[long]") {
  for (const bool tls : {true, false}) {
    World world({{}, {}, tls});
    for (const bool with_rst : {false, true}) {
      for (const bool pouring : {false, true}) {
        INFO((with_rst ? "RST" : "FIN") << (tls ? ", HTTPS" : ", HTTP") << (pouring ? ", while lines come" : ""));
        const ManyLines many;
        const std::string app = fresh_app(), mark = fresh_mark();
        world.ollama.answer_with(many.then([pouring](Conn& conn) {
          while (pouring) {
            conn.line(token_line("p"));
            conn.pause(4);
          }
          silence(conn);
        }));
        Stream stream(world.endpoint, chat_body(app, mark));
        many.read(stream);
        if (pouring) stream.events(kMany + 5);
        const auto left = Clock::now();
        with_rst ? stream.connection.reset() : stream.connection.close();
        CHECK(ollama_saw_it_after_ms(*world.ollama.wait_for_request(mark), left) < 1000);
        CHECK(world.database.wait_for_rows(app, 2)[1][1].rfind(ManyLines::text(), 0) == 0);
      }
    }
  }
}

TEST_CASE("a client that reads on after a while gets everything in order, and others do not wait for it (3.7)", "[long]") {
  for (const bool tls : {true, false}) {
    INFO((tls ? "HTTPS" : "HTTP"));
    World world({{"--write-timeout", "30"}, {}, tls});
    const ManyLines many;
    const Flood flood;
    world.ollama.answer_with(many.then(flood.script()));
    Stream slow(world.endpoint, chat_body("slow", "slow reader"));
    many.read(slow);
    flood.wait_until_stuck();

    // Two, so that the pump's threads both have one.
    for (int i = 0; i < 2; ++i) {
      const ManyLines next_many;
      world.ollama.answer_with(next_many.then(end_well));
      Stream other(world.endpoint, chat_body("other" + std::to_string(i), "other"));
      const auto before = Clock::now();
      next_many.read(other);
      CHECK(other.rest().size() == kMany + 1);
      CHECK(ms_between(before, Clock::now()) < 5000);
    }

    slow.rest(4 * kPatienceMs);
    std::vector<std::string> lines = ManyLines::lines(), more = Flood::lines();
    lines.insert(lines.end(), more.begin(), more.end());
    lines.push_back(done_line());
    CHECK(same(slow.bytes, data_events(lines)));
    CHECK(world.database.wait_for_rows("slow", 2).size() == 2);
  }
}

TEST_CASE("a client that never reads on after many lines is given up after --write-timeout (3.12)", "[long]") {
  for (const bool tls : {true, false}) {
    INFO((tls ? "HTTPS" : "HTTP"));
    World world({{"--write-timeout", "0.5"}, {}, tls});
    world.expect_errors();
    const ManyLines many;
    world.ollama.answer_with(many.then(Flood().script()));
    Stream stream(world.endpoint, chat_body("app", "mark-stuck"));
    many.read(stream);
    ollama_saw_it_after_ms(*world.ollama.wait_for_request("mark-stuck"), Clock::now());
    const auto rows = world.database.wait_for_rows("app", 2);
    REQUIRE(rows.size() == 2);
    CHECK(rows[1][1].rfind(ManyLines::text(), 0) == 0);
  }
}

TEST_CASE("SIGTERM after many lines stores what arrived and exits with 0 (3.11)", "[long]") {
  for (const bool pouring : {false, true}) {
    INFO((pouring ? "lines come" : "silence"));
    World world({{"--drain", "0.3"}});
    const ManyLines many;
    world.ollama.answer_with(many.then([pouring](Conn& conn) {
      while (pouring) {
        conn.line(token_line("p"));
        conn.pause(4);
      }
      silence(conn);
    }));
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

TEST_CASE("the connection to Ollama serves the next request after an answer of many lines (3.12)", "[long]") {
  World world;
  int first = 0;
  for (int i = 0; i < 3; ++i) {
    const ManyLines many;
    const std::string mark = fresh_mark();
    world.ollama.answer_with(many.then(end_well));
    Stream stream(world.endpoint, chat_body("app", mark));
    many.read(stream);
    CHECK(stream.rest().size() == kMany + 1);
    const int connection = world.ollama.wait_for_request(mark)->request().connection;
    if (i == 0) first = connection;
    CHECK(connection == first);
  }
}

TEST_CASE("llmprompt passes each of many lines on as soon as it arrives, unchanged (2)", "[long]") {
  for (const bool tls : {true, false}) {
    INFO((tls ? "HTTPS" : "HTTP"));
    World world({{}, {}, tls});
    const ManyLines many;
    world.ollama.answer_with(many.then([](Conn& conn) {
      conn.chunk("not JSON\n\n{\"cut\"");
      conn.pause(10);
      conn.chunk(":1}\n");
      conn.end_chunks();
    }));
    Stream stream(world.endpoint, R"({"model":"m","prompt":"x"})", "/llmprompt/");
    std::string expected;
    const auto lines = ManyLines::lines();
    for (size_t i = 0; i < kMany; ++i) {
      expected += lines[i] + "\n";
      stream.read_until(lines[i] + "\n");
      many.gates()[i].open();
    }
    expected += "not JSON\n\n{\"cut\":1}\n";
    stream.read_until("{\"cut\":1}\n");
    CHECK_FALSE(stream.connection.read_body_some().has_value());
    CHECK(stream.connection.complete());
    CHECK(stream.bytes == expected);
  }
}

TEST_CASE("many long streams at once are complete and in order, round after round on kept connections (3.7)", "[long]") {
  constexpr int kClients = 40, kRounds = 4, kLines = 30;
  for (const bool tls : {true, false}) {
    INFO((tls ? "HTTPS" : "HTTP"));
    World world({{}, {}, tls});
    const auto line_of = [](const std::string& prompt, int i) { return token_line(prompt + "-" + std::to_string(i) + " "); };
    world.ollama.answer_with([=](Conn& conn) {
      const std::string prompt = nlohmann::json::parse(conn.request().body)["messages"].back()["content"];
      conn.stream_head();
      for (int i = 0; i < kLines; ++i) {
        conn.line(line_of(prompt, i));
        conn.pause(2);
      }
      end_well(conn);
    });
    std::mutex mutex;
    std::vector<std::string> complaints;  // guarded by mutex
    std::vector<std::thread> clients;
    for (int client = 0; client < kClients; ++client) {
      clients.emplace_back([&, client] {
        std::string trouble;
        try {
          Connection connection(world.endpoint);
          for (int round = 0; round < kRounds && trouble.empty(); ++round) {
            const std::string prompt = "c" + std::to_string(client) + "r" + std::to_string(round);
            std::vector<std::string> lines;
            for (int i = 0; i < kLines; ++i) lines.push_back(line_of(prompt, i));
            lines.push_back(done_line());
            connection.send(bytes_of({"POST", "/llmchat/", chat_body("app" + std::to_string(client), prompt), {}}));
            const Response response = connection.read_response();
            if (response.status() != 200 || !response.complete || response.body != data_events(lines)) trouble = response.text();
          }
        } catch (const std::exception& error) {
          trouble = error.what();
        }
        const std::lock_guard lock(mutex);
        if (!trouble.empty()) complaints.push_back(trouble);
      });
    }
    for (std::thread& client : clients) client.join();
    INFO((complaints.empty() ? "" : complaints.front()));
    CHECK(complaints.empty());
    for (int client = 0; client < kClients; ++client) {
      const auto rows = world.database.wait_for_rows("app" + std::to_string(client), 2 * kRounds);
      REQUIRE(rows.size() == 2 * kRounds);
      for (int round = 0; round < kRounds; ++round) {
        const std::string prompt = "c" + std::to_string(client) + "r" + std::to_string(round);
        std::string reply;
        for (int i = 0; i < kLines; ++i) reply += prompt + "-" + std::to_string(i) + " ";
        CHECK(rows[static_cast<size_t>(2 * round)][1] == prompt);
        CHECK(rows[static_cast<size_t>(2 * round + 1)][1] == reply);
      }
    }
  }
}

TEST_CASE("streams that Ollama breaks off in great number leave the others alone (3.7, 3.9)", "[long]") {
  constexpr int kClients = 24, kRounds = 6, kLines = 14;
  World world;
  world.ollama.answer_with([](Conn& conn) {
    const std::string prompt = nlohmann::json::parse(conn.request().body)["messages"].back()["content"];
    conn.stream_head();
    for (int i = 0; i < kLines; ++i) {
      conn.line(token_line(prompt));
      conn.pause(2);
    }
    if (prompt == "breaks") return conn.rst();
    end_well(conn);
  });
  std::atomic<int> wrong{0}, late{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      const bool breaks = client % 2 == 0;
      try {
        for (int round = 0; round < kRounds; ++round) {
          const auto before = Clock::now();
          Connection connection(world.endpoint);
          connection.send(bytes_of({"POST", "/llmchat/", chat_body("a" + std::to_string(client), breaks ? "breaks" : "goes on"), {}}));
          const Response response = connection.read_response(2 * kPatienceMs);
          const auto events = parse_sse(response.body);
          const bool right = breaks ? !events.empty() && events.back().type == "error"
                                    : events.size() == kLines + 1 && events.back().data == done_line();
          if (!right || !response.complete) ++wrong;
          // A stream that is no longer watched comes to life again by its next ping only.
          if (ms_between(before, Clock::now()) > 12000) ++late;
        }
      } catch (const std::exception&) {
        ++wrong;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(wrong == 0);
  CHECK(late == 0);
}
