// No descriptors left, and system calls that fail.
#include <signal.h>
#include <sys/resource.h>

#include "tests/faults/world.hpp"

using namespace faults;

namespace {

// strace and limits reach chatterd only as the user that the tests run as.
Arguments as_this_user(Arguments more) {
  if (::geteuid() == 0) more.insert(more.end(), {"--user", "root"});
  return more;
}

// The part of one processor that the process takes in this time, in percent.
double cpu_percent(pid_t pid, int during_ms) {
  const double before = cpu_ms(pid);
  const auto began = Clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(during_ms));
  return 100 * (cpu_ms(pid) - before) / ms_between(began, Clock::now());
}

// Attached to a process while it lives; the system calls named fail for it.
class FailingCalls {
 public:
  FailingCalls(pid_t pid, const std::string& calls, const std::string& error)
      : strace_("/usr/bin/strace", {"-f", "-o", "/dev/null", "-p", std::to_string(pid), "-e", "trace=" + calls, "-e",
                                    "inject=" + calls + ":error=" + error}) {
    eventually([this] { return strace_.err().find("attached") != std::string::npos || strace_.wait_exit(0).has_value(); });
    attached_ = !strace_.wait_exit(0).has_value();
  }
  ~FailingCalls() {
    strace_.signal(SIGINT);
    strace_.wait_exit(kPatienceMs);
  }
  FailingCalls(const FailingCalls&) = delete;
  FailingCalls& operator=(const FailingCalls&) = delete;
  [[nodiscard]] bool is_attached() const { return attached_; }
  [[nodiscard]] std::string complaint() const { return strace_.err(); }

 private:
  Process strace_;
  bool attached_ = false;
};

}  // namespace

TEST_CASE("descriptors exhausted make no busy loop, and there is service again afterwards", "[fault][short][scarcity]") {
  World world({.arguments = as_this_user({"--header-timeout", "60"}), .events = {"accept_failed", "database_away"}});
  rlimit limit{};
  REQUIRE(::prlimit(world.pid(), RLIMIT_NOFILE, nullptr, &limit) == 0);
  const rlim_t before = std::exchange(limit.rlim_cur, 64);
  REQUIRE(::prlimit(world.pid(), RLIMIT_NOFILE, &limit, nullptr) == 0);
  {
    std::vector<Fd> silent;
    for (int i = 0; i < 100; ++i) silent.push_back(connect_to("127.0.0.1", world.endpoint().port, Deadline(kPatienceMs)));
    CHECK_FALSE(world.chatterd().wait_for_log({"event=accept_failed"}).empty());
    const double percent = cpu_percent(world.pid(), 2000);
    const size_t lines = lines_of(world.chatterd().err()).size();
    report("it took " + std::to_string(percent) + " % of a processor, and wrote " + std::to_string(lines) + " lines of log");
    CHECK(percent < 20);
  }
  CHECK(world.wait_for_service() < world.within_ms(2000));
  // The same with clients that are served: what is missing is an answer, not the service.
  {
    std::vector<std::thread> clients;
    for (int i = 0; i < 100; ++i) {
      clients.emplace_back([&world, app = "scarce-" + std::to_string(i)] { world.turn(app, app + "#1"); });
    }
    for (std::thread& client : clients) client.join();
  }
  CHECK(world.wait_for_service() < world.within_ms(2000));
  limit.rlim_cur = before;
  REQUIRE(::prlimit(world.pid(), RLIMIT_NOFILE, &limit, nullptr) == 0);
  world.finish();
}

TEST_CASE("accept, send and recv that fail make no busy loop, and there is service again afterwards", "[fault][slow][scarcity]") {
  World world({.arguments = as_this_user({"--db-timeout", "1", "--store-retry", "1"}),
               .tls = false,
               .events = {"accept_failed", "database_away", "reply_spooled", "spooled_reply_stored"}});
  const std::vector<std::pair<std::string, std::string>> failures = {
      {"accept4", "EMFILE"}, {"accept4", "ENOBUFS"}, {"accept4", "ECONNABORTED"}, {"accept4", "EPERM"},
      {"sendto,sendmsg", "ECONNRESET"}, {"sendto,sendmsg", "ENOBUFS"}, {"recvfrom,recvmsg", "ECONNRESET"}, {"recvfrom,recvmsg", "ENOMEM"}};
  for (const auto& [calls, error] : failures) {
    INFO(calls << " fails with " << error);
    const std::string app = calls.substr(0, 6) + "-" + error;
    std::vector<std::thread> clients;
    {
      const FailingCalls failing(world.pid(), calls, error);
      if (!failing.is_attached()) {
        WARN("skipped: strace can't attach here: " << failing.complaint());
        break;
      }
      for (int i = 0; i < 8; ++i) {
        clients.emplace_back([&world, name = app + "-" + std::to_string(i)] { world.turn(name, name + "#1"); });
      }
      const double percent = cpu_percent(world.pid(), 2000);
      report(calls + " failing with " + error + ": " + std::to_string(percent) + " % of a processor");
      CHECK(percent < 20);
    }
    CHECK(world.wait_for_service() < world.within_ms(5000));
    for (std::thread& client : clients) client.join();
  }
  world.finish();
}
