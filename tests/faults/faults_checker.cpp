// The checker itself: a fault that it overlooks would make every other case pass.
#include "tests/faults/world.hpp"

using namespace faults;

namespace {

std::string reply_to(const std::string& prompt) { return "to  " + prompt; }

// What the checker says of these rows of a conversation whose turns were: an acknowledged, a refused and an
// unknown prompt, and one whose whole reply is due.
size_t complaints(const std::vector<std::pair<std::string, std::string>>& messages) {
  TurnLog log;
  const auto add = [&log](const std::string& prompt, Outcome outcome, bool reply_due) {
    Turn turn;
    turn.prompt = prompt;
    turn.outcome = outcome;
    turn.reply_due = reply_due;
    log.add("app", turn);
  };
  add("first", Outcome::acknowledged, false);
  add("second", Outcome::refused, false);
  add("third", Outcome::unknown, false);
  add("fourth", Outcome::acknowledged, true);
  std::vector<Row> rows;
  for (const auto& [name, message] : messages) rows.push_back({"app", name, message});
  return violations(log, rows, reply_to).size();
}

}  // namespace

TEST_CASE("the checker accepts what may be and notices what may not", "[fault][short][checker]") {
  const std::pair<std::string, std::string> first{"user", "first"}, third{"user", "third"}, fourth{"user", "fourth"},
      reply{"assistant", "to fourth"};
  CHECK(complaints({first, fourth, reply}) == 0);
  CHECK(complaints({first, third, fourth, reply}) == 0);
  CHECK(complaints({first, {"assistant", "to fi"}, third, {"assistant", "to third"}, fourth, reply}) == 0);
  CHECK(complaints({fourth, reply}) == 1);                                           // lost
  CHECK(complaints({first, {"user", "second"}, fourth, reply}) == 1);                // refused, and stored
  CHECK(complaints({first, first, fourth, reply}) > 0);                              // twice
  CHECK(complaints({first, third, third, fourth, reply}) > 0);                       // unknown, and twice
  CHECK(complaints({fourth, reply, first}) == 1);                                    // out of order
  CHECK(complaints({first, fourth, reply, third}) == 1);                             // late
  CHECK(complaints({first, {"user", "nobody's"}, fourth, reply}) == 1);              // of nobody
  CHECK(complaints({first, fourth}) == 1);                                           // without the reply that is due
  CHECK(complaints({first, fourth, {"assistant", "to fou"}}) == 1);                  // with a part of it
  CHECK(complaints({first, fourth, reply, reply}) == 1);                             // with it twice
  CHECK(complaints({first, fourth, {"assistant", "to  fourth"}}) > 0);               // with its white space
  CHECK(complaints({first, {"assistant", "to fourth"}, fourth, reply}) == 1);        // another's reply
  CHECK(complaints({first, third, reply, fourth, reply}) == 1);                      // in the wrong place
}
