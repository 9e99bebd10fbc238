// PostgreSQL stopped, frozen, slow, short of connections, out of disk.
#include <signal.h>
#include <sys/mount.h>

#include <fstream>
#include <list>

#include "tests/faults/slow_link.hpp"
#include "tests/faults/world.hpp"

using namespace faults;

namespace {

const std::vector<std::string> kAwayEvents = {"database_away", "reply_spooled", "spooled_reply_stored"};

const char* const kServerProcesses =
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'chatterd' AND datname = current_database() ORDER BY state_change DESC";

// Ends a stop by SIGSTOP whatever happens to the case.
class Frozen {
 public:
  explicit Frozen(pid_t pid) : pid_(pid) { ::kill(pid_, SIGSTOP); }
  ~Frozen() { ::kill(pid_, SIGCONT); }
  Frozen(const Frozen&) = delete;
  Frozen& operator=(const Frozen&) = delete;

 private:
  pid_t pid_;
};

void stop_and_start_again(int rounds, int conversations) {
  Cluster cluster;
  World world({.cluster = &cluster, .events = kAwayEvents});
  world.ollama.answer_with(talk(20));
  double back_ms = 0;
  {
    Prober prober(world);
    Load load(world, conversations);
    for (int round = 0; round < rounds; ++round) {
      const size_t before = world.log.count(Outcome::acknowledged);
      REQUIRE(eventually([&] { return world.log.count(Outcome::acknowledged) > before + static_cast<size_t>(conversations); }));
      cluster.stop_immediately();
      // Clients in mid-stream wait for it; new turns are refused at once.
      const std::string app = "away-" + std::to_string(round);
      for (int i = 0; i < 5; ++i) {
        CHECK(world.turn(app, app + "#" + std::to_string(i)).status == 503);
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
      cluster.start();
      back_ms = std::max(back_ms, world.wait_for_service());
    }
    load.stop();
    prober.expect_within(world.within_ms(1000));
  }
  report("503 after " + ms_text(world.log.slowest_ms(503)) + " at most, service again after " +
         ms_text(back_ms) + " at most");
  CHECK(world.log.slowest_ms(503) < world.within_ms(3000));
  CHECK(back_ms < world.within_ms(5000));
  world.finish();
}

void freeze_a_server_process(int seconds) {
  World world({.events = kAwayEvents});
  world.ollama.answer_with(talk(10));
  Prober prober(world);
  Load load(world, 8);
  REQUIRE(eventually([&] { return world.log.count(Outcome::acknowledged) > 30; }));
  {
    // All that chatterd holds at this moment, since which of them is used next is its own affair.
    std::list<Frozen> frozen;
    for (const Row& row : world.sql(kServerProcesses)) frozen.emplace_back(std::stoi(row[0]));
    REQUIRE_FALSE(frozen.empty());
    // The fault is its length: nothing to wait for.
    std::this_thread::sleep_for(std::chrono::seconds(seconds));
  }
  const double back_ms = world.wait_for_service();
  load.stop();
  prober.expect_within(world.within_ms(1000));
  report("the slowest status came after " + ms_text(world.log.slowest_ms()) + ", service again after " +
         ms_text(back_ms));
  // --db-timeout and a turn's own time; a turn that waits for the one before it adds that one's.
  CHECK(world.log.slowest_ms() < world.within_ms(3500));
  // Whoever was about to prompt heard 503; whoever was in mid-stream had its reply stored a little later.
  CHECK(world.chatterd().err().find("event=database_away") != std::string::npos);
  world.finish();
}

}  // namespace

TEST_CASE("PostgreSQL stopped immediately and started again 20 times under 50 conversations loses nothing", "[fault][slow][database]") {
  stop_and_start_again(20, 50);
}

TEST_CASE("PostgreSQL stopped immediately and started again twice under 10 conversations loses nothing", "[fault][short][database]") {
  stop_and_start_again(2, 10);
}

TEST_CASE("a server process of PostgreSQL frozen for 30 s holds no call beyond its deadline", "[fault][slow][database]") {
  freeze_a_server_process(30);
}

TEST_CASE("a server process of PostgreSQL frozen for 4 s holds no call beyond its deadline", "[fault][short][database]") {
  freeze_a_server_process(4);
}

TEST_CASE("a prompt given up while PostgreSQL was frozen is never stored behind a later one", "[fault][short][database]") {
  World world({.arguments = {"--db-timeout", "1"}, .events = kAwayEvents});
  for (int round = 0; round < 3; ++round) {
    const std::string app = "late-" + std::to_string(round);
    {
      const Frozen frozen(std::stoi(world.sql(kServerProcesses)[0][0]));
      CHECK(world.turn(app, app + "#early").status == 503);
      // Meanwhile another connection serves the conversation.
      REQUIRE(eventually([&] { return world.turn(app, app + "#later" + std::to_string(world.log.count_status(503))).status == 200; }));
    }
    world.wait_for_service();
  }
  // Until the frozen processes have done whatever they still would do.
  CHECK(eventually([&] {
    return world.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'chatterd' AND datname = current_database()"
                     " AND state <> 'idle'").empty();
  }));
  world.finish();
}

TEST_CASE("a database that answers 2 s late ends every call at its deadline", "[fault][slow][database]") {
  SlowLink link(Database::server_port());
  World world({.database_port = link.port(), .events = kAwayEvents});
  Prober prober(world);
  link.delay_answers(2000);
  {
    Load load(world, 4);
    REQUIRE(eventually([&] { return world.log.count_status(503) >= 4; }));
  }
  link.delay_answers(0);
  report("the slowest status came after " + ms_text(world.log.slowest_ms()));
  CHECK(world.log.slowest_ms() < world.within_ms(3000));
  const double back_ms = world.wait_for_service();
  CHECK(back_ms < world.within_ms(5000));
  prober.expect_within(world.within_ms(1000));
  world.finish();
}

TEST_CASE("a pool of 4 with 64 clients at once lets all of them wait a bounded time", "[fault][slow][database]") {
  // Late by a few hundred milliseconds, all have their turn within --db-timeout, for they share transactions; when each
  // takes most of that time, only the first ones can.
  for (const int delay_ms : {0, 300, 1500}) {
    SlowLink link(Database::server_port());
    World world({.arguments = {"--db-pool", "4"}, .database_port = link.port(), .events = kAwayEvents});
    // Whoever got through may hear so when nobody waits for the database any more.
    world.ollama.answer_with(talk(0));
    link.delay_answers(delay_ms);
    {
      std::vector<std::thread> clients;
      for (int i = 0; i < 64; ++i) {
        clients.emplace_back([&world, app = "pool-" + std::to_string(i)] { world.turn(app, app + "#1"); });
      }
      for (std::thread& client : clients) client.join();
    }
    link.delay_answers(0);
    report("answers " + std::to_string(delay_ms) + " ms late: " + world.log.summary() + "; the slowest status came after " +
           ms_text(world.log.slowest_ms()));
    CHECK(world.log.slowest_ms() < world.within_ms(3000));
    CHECK(world.log.count_status(200) + world.log.count_status(503) == 65);
    if (delay_ms < 1000) CHECK(world.log.count_status(503) == 0);
    else CHECK(world.log.count_status(503) > 0);
    world.finish();
  }
}

namespace {

// A file system of a few megabytes in memory, which a file can fill.
class SmallDisk {
 public:
  SmallDisk(std::string folder, const std::string& owner) : folder_(std::move(folder)) {
    mounted_ = ::mount("none", folder_.c_str(), "tmpfs", 0, ("size=4m,mode=700" + owner).c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(folder_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  [[nodiscard]] bool is_mounted() const { return mounted_; }
  void fill() const {
    std::ofstream ballast(folder_ + "/ballast", std::ios::binary);
    const std::string block(4096, 'b');
    while (ballast.write(block.data(), static_cast<std::streamsize>(block.size())).flush()) {
    }
  }
  void make_room() const { std::remove((folder_ + "/ballast").c_str()); }

 private:
  std::string folder_;
  bool mounted_ = false;
};

std::string owned_by_server_user() {
  std::string text;
  try {
    Process id("/usr/bin/id", {"-u", "postgres"});
    id.wait_exit(kPatienceMs);
    Process group("/usr/bin/id", {"-g", "postgres"});
    group.wait_exit(kPatienceMs);
    text = ",uid=" + id.out().substr(0, id.out().find('\n')) + ",gid=" + group.out().substr(0, group.out().find('\n'));
  } catch (const std::exception&) {
    // The mount says what is wrong.
  }
  return text;
}

}  // namespace

TEST_CASE("a full disk of the database acknowledges nothing that is not stored", "[fault][short][database]") {
  Cluster cluster;
  const SmallDisk disk(cluster.folder().make("disk"), owned_by_server_user());
  if (!disk.is_mounted()) {
    WARN("skipped: a small file system can't be mounted here, which needs root");
    return;
  }
  {
    SqlConnection admin(cluster.admin_conninfo("postgres"));
    admin.run("CREATE TABLESPACE small LOCATION '" + cluster.folder().path() + "/disk'");
    admin.run("GRANT CREATE ON TABLESPACE small TO chatter");
    admin.run("ALTER ROLE chatter SET default_tablespace = small");
  }
  World world({.cluster = &cluster, .events = kAwayEvents});
  world.ollama.answer_with(talk(5));
  {
    // Prompts that fill a page each soon meet the end of the disk.
    Load load(world, 6, "full", 1900);
    REQUIRE(eventually([&] { return world.log.count(Outcome::acknowledged) > 20; }));
    disk.fill();
    REQUIRE(eventually([&] { return world.log.count_status(503) > 40; }));
    disk.make_room();
    const double back_ms = world.wait_for_service();
    report("service again " + ms_text(back_ms) + " after there was room");
    CHECK(back_ms < world.within_ms(5000));
  }
  world.finish();
  cluster.stop_immediately();
}
