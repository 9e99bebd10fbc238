#include "tests/catch.hpp"

#include <thread>
#include <vector>

#include "turns.hpp"

using std::chrono::milliseconds;

TEST_CASE("no more streams run than there are slots, and a slot comes back (3.15)", "[turns]") {
  StreamSlots slots(2, 0);
  const auto first = slots.take("a");
  {
    const auto second = slots.take("a");
    REQUIRE(first.ok());
    REQUIRE(second.ok());
    REQUIRE_FALSE(slots.take("b").ok());
    CHECK(slots.take("b").error() == StreamSlots::Full::server);
  }
  CHECK(slots.take("b").ok());
}

TEST_CASE("one client has no more streams than its share, whatever the others have", "[turns]") {
  StreamSlots slots(10, 1);
  {
    const auto first = slots.take("a");
    REQUIRE(first.ok());
    const auto second = slots.take("a");
    REQUIRE_FALSE(second.ok());
    CHECK(second.error() == StreamSlots::Full::client);
    CHECK(slots.take("b").ok());
  }
  CHECK(slots.take("a").ok());
}

TEST_CASE("one conversation has one turn at a time, another is not held up (3.13)", "[turns]") {
  Conversations conversations;
  auto turn = conversations.enter("a", milliseconds(0));
  REQUIRE(turn.has_value());
  CHECK_FALSE(conversations.enter("a", milliseconds(1)).has_value());
  CHECK(conversations.enter("b", milliseconds(0)).has_value());
  turn.reset();
  CHECK(conversations.enter("a", milliseconds(0)).has_value());
}

TEST_CASE("turns of one conversation never overlap and none is lost (3.13)", "[turns]") {
  Conversations conversations;
  int at_work = 0;  // guarded by the turn itself: a race would show under TSan
  int done = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int turns = 0; turns < 200; ++turns) {
        const auto turn = conversations.enter("a", std::chrono::seconds(30));
        if (!turn || ++at_work != 1) return;
        ++done;
        --at_work;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(done == 8 * 200);
}
