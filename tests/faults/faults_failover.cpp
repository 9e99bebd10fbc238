// A primary and its hot standby (docs/scaling.md): the primary dies, the standby is promoted.
#include "tests/faults/world.hpp"

using namespace faults;

namespace {

const std::vector<std::string> kAwayEvents = {"database_away", "reply_spooled", "spooled_reply_stored"};

std::string both(const Cluster& primary, const Cluster& standby) {
  return "host=127.0.0.1,127.0.0.1 port=" + std::to_string(primary.port()) + "," + std::to_string(standby.port()) +
         " user=chatter dbname=chatterdb";
}

}  // namespace

TEST_CASE("a fail-over to a synchronous hot standby under 20 conversations loses nothing acknowledged", "[fault][short][database]") {
  Cluster primary;
  Cluster standby(primary);
  primary.wait_for_standby_only();
  World world({.cluster = &standby, .conninfo = both(primary, standby), .events = kAwayEvents});
  world.ollama.answer_with(talk(20));
  Prober prober(world);
  Load load(world, 20);
  REQUIRE(eventually([&] { return world.log.count(Outcome::acknowledged) > 60; }));
  primary.stop_immediately();
  // Nothing takes a write now: neither the dead one nor the one that still only follows.
  for (int i = 0; i < 5; ++i) CHECK(world.turn("away", "away#" + std::to_string(i)).status == 503);
  standby.promote();
  const double back_ms = world.wait_for_service();
  const size_t before = world.log.count(Outcome::acknowledged);
  CHECK(eventually([&] { return world.log.count(Outcome::acknowledged) > before + 40; }));
  load.stop();
  prober.expect_within(world.within_ms(1000));
  report("service again " + ms_text(back_ms) + " after the promotion; the slowest status came after " + ms_text(world.log.slowest_ms()));
  CHECK(back_ms < world.within_ms(5000));
  world.finish();
}

TEST_CASE("a standby that is the only server left is away, not broken: 503, and 200 once it is promoted", "[fault][short][database]") {
  Cluster primary;
  Cluster standby(primary);
  World world({.cluster = &standby, .conninfo = both(primary, standby) + " target_session_attrs=any", .events = kAwayEvents});
  primary.stop_immediately();
  for (int i = 0; i < 5; ++i) CHECK(world.turn("read-only", "read-only#" + std::to_string(i)).status == 503);
  standby.promote();
  world.wait_for_service();
  world.finish();
}
