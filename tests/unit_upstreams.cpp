// The rules of upstreams.hpp, with the time in the test's hand.
#include "upstreams.hpp"

#include "ollama.hpp"
#include "tests/catch.hpp"

using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

using Tried = Upstreams::Tried;

const Clock::time_point kStart = Clock::time_point() + std::chrono::hours(1);

// Several Ollamas, a clock, and turns that are over at once unless they are to go on.
struct Choice {
  explicit Choice(size_t count) : upstreams(count) {}
  std::optional<size_t> begin(Tried tried = {}, bool resting_too = true) { return upstreams.choose(tried, resting_too, now); }
  std::optional<size_t> turn(Tried tried = {}, bool resting_too = true) {
    const auto chosen = begin(tried, resting_too);
    if (chosen) upstreams.leave(*chosen);
    return chosen;
  }
  Upstreams upstreams;
  Clock::time_point now = kStart;
};

}  // namespace

TEST_CASE("the address with the fewest generations is chosen, among equals the first", "[upstreams]") {
  Choice choice(3);
  CHECK(choice.turn() == 0);
  CHECK(choice.turn() == 0);
  for (const size_t expected : {0u, 1u, 2u, 0u, 1u, 2u}) CHECK(choice.begin() == expected);
  choice.upstreams.leave(2);
  CHECK(choice.begin() == 2);
  CHECK(choice.upstreams.running(2) == 2);
}

TEST_CASE("a turn gets no address twice", "[upstreams]") {
  Choice choice(2);
  CHECK(choice.turn(Tried(0b01)) == 1);
  CHECK(choice.turn(Tried(0b10)) == 0);
  CHECK_FALSE(choice.turn(Tried(0b11)).has_value());
}

TEST_CASE("an address that has failed is left alone until its rest is over, however busy the others are", "[upstreams]") {
  Choice choice(2);
  CHECK(choice.upstreams.fail(0, choice.now));
  CHECK(choice.upstreams.rests(0));
  for (int i = 0; i < 5; ++i) CHECK(choice.begin() == 1);
  choice.now += Upstreams::kRestFirst - milliseconds(1);
  CHECK(choice.turn() == 1);
  choice.now += milliseconds(1);
  CHECK(choice.turn() == 0);
}

TEST_CASE("after a rest one turn finds out whether the address is back, the others leave it alone meanwhile", "[upstreams]") {
  Choice choice(2);
  choice.upstreams.fail(0, choice.now);
  choice.now += Upstreams::kRestFirst;
  CHECK(choice.turn() == 0);
  CHECK(choice.turn() == 1);
  CHECK(choice.turn() == 1);
  CHECK(choice.upstreams.answer(0));
  CHECK_FALSE(choice.upstreams.answer(0));
  CHECK_FALSE(choice.upstreams.rests(0));
  CHECK(choice.turn() == 0);
}

TEST_CASE("each failure after a rest doubles the next rest, up to the limit; an answer makes it short again", "[upstreams]") {
  Choice choice(2);
  CHECK(choice.upstreams.fail(0, choice.now));
  const auto rest_length = [&] {
    const auto from = choice.now;
    while (choice.turn() != 0) choice.now += milliseconds(100);
    CHECK_FALSE(choice.upstreams.fail(0, choice.now));
    return choice.now - from;
  };
  for (const int expected : {1, 2, 4, 8, 16, 30, 30}) CHECK(rest_length() == seconds(expected));
  choice.upstreams.answer(0);
  CHECK(choice.upstreams.fail(0, choice.now));
  CHECK(rest_length() == Upstreams::kRestFirst);
}

TEST_CASE("many turns that fail at the same time make one rest", "[upstreams]") {
  Choice choice(2);
  for (int i = 0; i < 50; ++i) CHECK(choice.upstreams.fail(0, choice.now) == (i == 0));
  choice.now += Upstreams::kRestFirst;
  CHECK(choice.turn() == 0);
}

TEST_CASE("when all rest, the one whose rest is over soonest is tried at once, unless the turn has an answer", "[upstreams]") {
  Choice choice(3);
  for (const size_t upstream : {1u, 0u, 2u}) {
    choice.upstreams.fail(upstream, choice.now);
    choice.now += milliseconds(10);
  }
  CHECK(choice.turn() == 1);
  CHECK(choice.turn(Tried(0b010)) == 0);
  CHECK(choice.turn(Tried(0b011)) == 2);
  CHECK_FALSE(choice.turn({}, false).has_value());
}

TEST_CASE("an address alone is always tried", "[upstreams]") {
  Choice choice(1);
  for (int i = 0; i < 5; ++i) {
    CHECK(choice.turn() == 0);
    choice.upstreams.fail(0, choice.now);
  }
}

TEST_CASE("a generation counts at its address from its start to its end", "[upstreams]") {
  Ollama ollama({*OllamaAddress::parse("http://a:1"), *OllamaAddress::parse("http://b:2/api")});
  {
    const auto first = ollama.start("POST", "/chat", "{}");
    const auto second = ollama.start("POST", "/chat", "{}");
    const auto third = ollama.start_at(1, "GET", "/tags", "");
    const auto states = ollama.addresses();
    REQUIRE(states.size() == 2);
    CHECK(states[0].url == "http://a:1");
    CHECK(states[0].running == 1);
    CHECK(states[1].url == "http://b:2/api");
    CHECK(states[1].running == 2);
    CHECK_FALSE(states[1].resting);
    third->abandon();
    CHECK(ollama.addresses()[1].running == 1);
  }
  CHECK(ollama.addresses()[0].running == 0);
  CHECK(ollama.addresses()[1].running == 0);
}

TEST_CASE("--ollama takes several URLs, separated by commas (6)", "[upstreams]") {
  const auto two = OllamaAddress::parse_list("http://a:1/api, http://[::1]:2");
  REQUIRE(two.ok());
  REQUIRE(two.value().size() == 2);
  CHECK(two.value()[0].host == "a");
  CHECK(two.value()[1].url == "http://[::1]:2");
  for (const char* wrong : {"", ",", "http://a,", ",http://a", "http://a,,http://b", "http://a;http://b,", "http://a,b:1"}) {
    CAPTURE(wrong);
    CHECK_FALSE(OllamaAddress::parse_list(wrong).ok());
  }
  CHECK(OllamaAddress::parse_list("x").error().find("the value is not") == 0);
  CHECK(OllamaAddress::parse_list("http://a,x").error().find("address 2 of the list is not") == 0);
  std::string many = "http://a";
  for (size_t i = 1; i < kOllamasMax; ++i) many += ",http://a";
  CHECK(OllamaAddress::parse_list(many).ok());
  CHECK_FALSE(OllamaAddress::parse_list(many + ",http://a").ok());
}
