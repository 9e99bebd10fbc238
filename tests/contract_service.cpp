// chatterd under a service manager: what it says to systemd by sd_notify(3), and what its watchdog catches.
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "tests/contract_fixture.hpp"
#include "tests/harness/service_manager.hpp"

using namespace contract;

namespace {

constexpr int kWatchdogMs = 2000;

// The threads of a process that have this name.
std::vector<pid_t> threads_named(pid_t pid, const std::string& name) {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    std::ifstream file(entry.path() / "comm");
    std::string comm;
    std::getline(file, comm);
    if (comm == name) found.push_back(std::stoi(entry.path().filename().string()));
  }
  return found;
}

// Holds one thread of a process still, as if it hung, while all others go on.
class HungThread {
 public:
  explicit HungThread(pid_t thread) : thread_(thread) {
    held_ = ::ptrace(PTRACE_SEIZE, thread_, nullptr, nullptr) == 0 && ::ptrace(PTRACE_INTERRUPT, thread_, nullptr, nullptr) == 0;
    if (held_) ::waitpid(thread_, nullptr, __WALL);
  }
  ~HungThread() {
    if (held_) ::ptrace(PTRACE_DETACH, thread_, nullptr, nullptr);
  }
  HungThread(const HungThread&) = delete;
  HungThread& operator=(const HungThread&) = delete;
  [[nodiscard]] bool held() const { return held_; }

 private:
  pid_t thread_;
  bool held_;
};

// So many further signs of life.
bool stays_alive(ServiceManager& manager, size_t beats) {
  const size_t before = manager.count("WATCHDOG=1");
  return eventually([&] { return manager.count("WATCHDOG=1") >= before + beats; });
}

}  // namespace

TEST_CASE("systemd hears when chatterd serves, with a path and with an abstract address (sd_notify(3))", "[service]") {
  for (const bool abstract : {false, true}) {
    CAPTURE(abstract);
    ServiceManager manager(abstract);
    const World world({{}, manager.environment()});
    CHECK(manager.wait_for("READY=1") == "READY=1");
    CHECK(world.get("/").status() == 200);
    CHECK(manager.count("WATCHDOG=1") == 0);  // nobody asked for it
  }
}

TEST_CASE("systemd is told the number of streams and what is away, when it changes (sd_notify(3))", "[service]") {
  ServiceManager manager;
  Setup setup{{}, manager.environment()};
  setup.database_proxy = true;
  World world(setup);
  CHECK(manager.wait_for("STATUS=0 streams") == "STATUS=0 streams");
  Gate gate;
  world.ollama.answer_with(answer_then_wait({"a"}, gate));
  Stream stream(world.endpoint, chat_body("app", "x"));
  stream.events(1);
  CHECK(manager.wait_for("STATUS=1 stream") == "STATUS=1 stream");
  gate.open();
  stream.rest();
  world.database_proxy->outage();
  CHECK(world.get("/getchatts/").status() == 503);
  CHECK(manager.wait_for("STATUS=0 streams; database away") == "STATUS=0 streams; database away");
  world.database_proxy->pass();
  CHECK(eventually([&] { return world.get("/getchatts/").status() == 200; }));
  const size_t now = manager.messages().size();
  CHECK(eventually([&] { return manager.messages().size() > now && manager.messages().back() == "STATUS=0 streams"; }));
}

TEST_CASE("without database and Ollama chatterd is ready, says what it waits for, and notices when it is there (6)", "[service]") {
  ServiceManager manager;
  Fd nobody = bind_loopback(0);
  Arguments arguments = usual_arguments("host=127.0.0.1 port=1 dbname=none", url_of(nobody));
  Chatterd chatterd(arguments, manager.environment());
  chatterd.wait_until_ready();
  CHECK(manager.wait_for("READY=1") == "READY=1");
  CHECK(manager.wait_for("STATUS=") == "STATUS=0 streams; database away; Ollama away");
  const ScriptedOllama ollama(std::move(nobody));
  CHECK(manager.wait_for("STATUS=0 streams; database away", manager.messages().size()) == "STATUS=0 streams; database away");
  CHECK(chatterd.stop() == 0);
}

TEST_CASE("at SIGTERM systemd is told, a stream goes on to its end, and its reply is stored (sd_notify(3), 3.11)", "[service]") {
  ServiceManager manager;
  World world({{}, manager.environment()});
  Gate gate;
  world.ollama.answer_with(answer_then_wait({"to the ", "end"}, gate));
  Stream stream(world.endpoint, chat_body("app", "x"));
  stream.events(2);
  world.chatterd->signal(SIGTERM);
  // Ten seconds of --drain, and for the ends of streams --write-timeout, twice --db-timeout and a second more.
  CHECK(manager.wait_for("STOPPING=1") == "STOPPING=1\nEXTEND_TIMEOUT_USEC=26000000");
  CHECK(manager.wait_for("STATUS=stopping") == "STATUS=stopping; 1 stream");
  gate.open();
  CHECK(stream.rest().size() == 3);
  CHECK(world.chatterd->wait_exit(kPatienceMs) == 0);
  CHECK(joined(world.database.conversation("app")) == "user:x|assistant:to the end");
}

TEST_CASE("a reload is told to systemd from its beginning to its end (sd_notify(3))", "[service]") {
  ServiceManager manager;
  const World world({{}, manager.environment()});
  REQUIRE(manager.wait_for("READY=1") == "READY=1");
  const size_t before = manager.messages().size();
  world.chatterd->signal(SIGHUP);
  const std::string reloading = manager.wait_for("RELOADING=1\nMONOTONIC_USEC=", before);
  REQUIRE_FALSE(reloading.empty());
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const long long told_us = std::stoll(reloading.substr(reloading.rfind('=') + 1));
  CHECK(told_us <= now.tv_sec * 1'000'000 + now.tv_nsec / 1000);
  CHECK(told_us > (now.tv_sec - 60) * 1'000'000);
  CHECK(manager.wait_for("READY=1", before) == "READY=1");
  CHECK(manager.messages().back() != reloading);
}

TEST_CASE("the watchdog hears from a chatterd whose threads and streams are all in use (sd_watchdog_enabled(3))", "[service]") {
  ServiceManager manager;
  World world({{"--threads", "2", "--max-streams", "2", "--rate", "1000"}, manager.environment(kWatchdogMs)});
  Gate gate;
  world.ollama.answer_with(answer_then_wait({"a"}, gate));
  Stream first(world.endpoint, chat_body("one", "x"));
  first.events(1);
  Stream second(world.endpoint, chat_body("two", "x"));
  second.events(1);
  Connection queued(world.endpoint);
  queued.send(bytes_of({"GET", "/getchatts/", "", {}}));
  CHECK(stays_alive(manager, 4));
  CHECK(queued.stays_silent(1));  // no thread was there for it all the while
  gate.open();
  first.rest();
  second.rest();
  CHECK(queued.read_response().status() == 200);
}

TEST_CASE("the self-check needs no descriptor, no connection and no right of a client's (sd_watchdog_enabled(3))", "[service]") {
  ServiceManager manager;
  World world({{"--max-connections", "1", "--rate", "1"}, manager.environment(kWatchdogMs)});
  const Connection only(world.endpoint);
  CHECK(stays_alive(manager, 6));
  CHECK(world.chatterd->err().find("self-check") == std::string::npos);  // nor is it a line in the log
}

TEST_CASE("the watchdog does not hear from a chatterd of which a part hangs (sd_watchdog_enabled(3))", "[service]") {
  ServiceManager manager;
  World world({{}, manager.environment(kWatchdogMs)});
  world.expect_errors();
  REQUIRE(stays_alive(manager, 2));
  for (const std::string part : {"door", "pump", "greeter"}) {
    CAPTURE(part);
    const std::vector<pid_t> threads = threads_named(world.chatterd->pid(), part);
    REQUIRE_FALSE(threads.empty());
    std::vector<std::unique_ptr<HungThread>> hung;
    for (const pid_t thread : threads) {
      if (part != "pump" || hung.empty()) hung.push_back(std::make_unique<HungThread>(thread));
    }
    if (!hung.front()->held()) {
      WARN("this machine lets no process be traced: " << part << " was not looked at");
      return;
    }
    const size_t log_start = world.chatterd->err().size();
    REQUIRE_FALSE(world.chatterd->wait_for_log({"self_check_failed", "part=" + part}, log_start).empty());
    const size_t beats = manager.count("WATCHDOG=1");
    // Three more checks, and none of them passes.
    REQUIRE(eventually([&] { return lines_of(world.chatterd->log_from(log_start)).size() >= 4; }));
    CHECK(manager.count("WATCHDOG=1") == beats);
    hung.clear();
    CHECK(stays_alive(manager, 2));
  }
}
