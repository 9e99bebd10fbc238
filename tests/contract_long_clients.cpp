// Contract sections 3.7 and 3.12 in long answers: clients that leave, or do not read.
#include <atomic>

#include "tests/long_answers.hpp"

using namespace contract;

namespace {

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

TEST_CASE("a client that leaves after many lines ends the request to Ollama within a second (3.12)", "[long]") {
  for (const bool tls : {true, false}) {
    World world({{}, {}, tls});
    for (const bool with_rst : {false, true}) {
      for (const bool pouring : {false, true}) {
        INFO((with_rst ? "RST" : "FIN") << (tls ? ", HTTPS" : ", HTTP") << (pouring ? ", while lines come" : ""));
        const ManyLines many;
        const std::string app = fresh_app(), mark = fresh_mark();
        world.ollama.answer_with(many.then(pour("p", pouring)));
        Stream stream(world.endpoint, chat_body(app, mark));
        many.read(stream);
        if (pouring) stream.events(kMany + 5);
        const auto left = Clock::now();
        with_rst ? stream.connection.reset() : stream.connection.close();
        CHECK(ollama_saw_it_after_ms(*world.ollama.wait_for_request(mark), left) < 1000);
        check_stored_so_far(world, app);
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

    // More than the pump has threads: some share theirs with the slow one.
    for (int i = 0; i < 16; ++i) {
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
    CHECK((slow.bytes == data_events(lines)));  // in brackets: not shown
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
    check_stored_so_far(world, "app");
  }
}
