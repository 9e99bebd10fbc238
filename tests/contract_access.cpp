// Who gets in: API keys, limits per client, the user that chatterd becomes.
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include <openssl/evp.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "tests/contract_fixture.hpp"
#include "tests/harness/vitals.hpp"

using namespace contract;

namespace {

std::string sha256_hex(const std::string& text) {
  unsigned char digest[32];
  EVP_Digest(text.data(), text.size(), digest, nullptr, EVP_sha256(), nullptr);
  std::string hex;
  for (const unsigned char byte : digest) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

// A folder that the user chatterd becomes can read: keys are read again after root is gone.
class KeyFile {
 public:
  explicit KeyFile(const std::string& text) {
    ::chmod(folder_.file("").c_str(), 0755);
    write(text);
  }
  void write(const std::string& text) const {
    std::ofstream(path()) << text;
    ::chmod(path().c_str(), 0644);
  }
  std::string path() const { return folder_.file("keys"); }

 private:
  TempFolder folder_;
};

const size_t kProcessors = std::thread::hardware_concurrency();

bool may_have_real_time() {
  sched_param lowest{};
  lowest.sched_priority = ::sched_get_priority_min(SCHED_RR);
  const bool may_have = ::pthread_setschedparam(::pthread_self(), SCHED_RR, &lowest) == 0;
  const sched_param usual{};
  if (may_have) REQUIRE(::pthread_setschedparam(::pthread_self(), SCHED_OTHER, &usual) == 0);
  return may_have;
}

int status_with(const World& world, const std::string& authorization, const std::string& path = "/getchatts/") {
  Request request{"GET", path, "", {}};
  if (!authorization.empty()) request.headers = {{"Authorization", authorization}};
  return world.send(request).status();
}

std::string status_field(pid_t pid, const std::string& field) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with(field + ":")) return line.substr(field.size() + 1);
  }
  return "";
}

}  // namespace

TEST_CASE("with --api-keys every route but GET / needs a key, and a wrong one is as good as none", "[access]") {
  const KeyFile keys("# the course's\n" + sha256_hex("right key") + "  phones\n\n");
  World world({{"--api-keys", keys.path()}});
  CHECK(world.get("/").status() == 200);
  CHECK(world.send({"HEAD", "/", "", {}}).status() == 200);
  for (const char* path : {"/getchatts", "/getchatts/", "/nothing"}) CHECK(status_with(world, "", path) == 401);
  CHECK(world.send({"OPTIONS", "/llmchat/", "", {}}).status() == 401);
  for (const char* path : {"/llmchat/", "/llmprep/", "/llmprompt/", "/postchatt/"}) {
    const Response response = world.post(path, chat_body("app", "x"));
    check_error(response, 401);
    CHECK(response.head.header("WWW-Authenticate") == "Bearer");
  }
  CHECK(world.ollama.exchanges().empty());
  for (const char* wrong : {"Bearer wrong key", "Bearer ", "Bearer", "Basic right key", "right key", "Bearer right key2"}) {
    CAPTURE(wrong);
    CHECK(status_with(world, wrong) == 401);
  }
  CHECK(status_with(world, "Bearer " + sha256_hex("right key")) == 401);  // what is on disk opens nothing
  CHECK(status_with(world, "Bearer right key") == 200);
  CHECK(status_with(world, "bearer right key") == 200);
}

TEST_CASE("SIGHUP reads the API keys again, and a file that can't be used leaves the old ones", "[access]") {
  const KeyFile keys(sha256_hex("first") + "\n");
  World world({{"--api-keys", keys.path()}});
  world.expect_errors();
  keys.write(sha256_hex("second") + "\n");
  world.chatterd->signal(SIGHUP);
  REQUIRE_FALSE(world.chatterd->wait_for_log({"event=reloaded"}).empty());
  CHECK(status_with(world, "Bearer first") == 401);
  CHECK(status_with(world, "Bearer second") == 200);
  keys.write("no digest\n");
  world.chatterd->signal(SIGHUP);
  const std::string line = world.chatterd->wait_for_log({"event=reload_failed"});
  CHECK(line.find("line 1") != std::string::npos);
  CHECK(status_with(world, "Bearer second") == 200);
}

TEST_CASE("a file of API keys that can't be used is a wrong configuration (6)", "[access]") {
  const Database database;
  const auto with = [&](const std::string& file) {
    Arguments arguments = usual_arguments(database.conninfo(), "http://127.0.0.1:1");
    arguments.insert(arguments.end(), {"--api-keys", file});
    return run_chatterd(arguments);
  };
  const KeyFile empty("# nothing\n");
  const KeyFile plain("a key in plain text\n");
  for (const std::string& file : {empty.path(), plain.path(), std::string("/no/such/file")}) {
    const Finished finished = with(file);
    INFO(finished.text());
    CHECK(finished.status == 2);
    CHECK(finished.err.find("--api-keys") != std::string::npos);
    CHECK(finished.err.find("a key in plain text") == std::string::npos);
  }
}

TEST_CASE("with --rate a client that sends too much gets a 429 with Retry-After, and is served again", "[access]") {
  World world({{"--rate", "2"}});
  int refused = 0;
  for (int i = 0; i < 20; ++i) {
    const Response response = world.get("/");
    if (response.status() != 429) continue;
    check_error(response, 429);
    CHECK_FALSE(response.head.header("Retry-After").empty());
    ++refused;
  }
  CHECK(refused > 0);
  CHECK(refused < 20);
  CHECK(eventually([&] { return world.get("/").status() == 200; }));
}

TEST_CASE("with --streams-per-client one address has no more streams than that at a time", "[access]") {
  World world({{"--streams-per-client", "1"}});
  Gate gate;
  world.ollama.answer_with(answer_then_wait({"a", "b"}, gate));
  Stream first(world.endpoint, chat_body("one", "x"));
  first.expect_ok();
  first.events(1);
  const Response refused = world.post("/llmchat/", chat_body("two", "x"));
  check_error(refused, 429);
  CHECK_FALSE(refused.head.header("Retry-After").empty());
  CHECK(world.database.conversation("two").empty());
  CHECK(world.get("/getchatts/").status() == 200);
  gate.open();
  first.rest();
  CHECK(world.chat(chat_body("two", "x")).size() == 3);
}

TEST_CASE("started as root, chatterd serves as another user, without groups and for good", "[access]") {
  if (::geteuid() != 0) return;  // nothing to give up
  const World world({{"--user", "nobody"}});
  REQUIRE(world.get("/").status() == 200);
  const std::string ids = status_field(world.chatterd->pid(), "Uid");
  CHECK(ids == "\t65534\t65534\t65534\t65534");
  CHECK(status_field(world.chatterd->pid(), "Gid") == "\t65534\t65534\t65534\t65534");
  CHECK(status_field(world.chatterd->pid(), "Groups").find_first_of("0123456789") == std::string::npos);
  CHECK(status_field(world.chatterd->pid(), "CapEff") == "\t0000000000000000");
  CHECK(status_field(world.chatterd->pid(), "NoNewPrivs") == "\t1");
}

TEST_CASE("chatterd has real-time threads where the system lets it, for lines and to lend, at the lowest priority", "[access]") {
  const bool may_be = may_have_real_time();
  const World world;
  REQUIRE(world.get("/").status() == 200);
  const std::string process = "/proc/" + std::to_string(world.chatterd->pid());
  std::ifstream maps(process + "/maps");
  // ThreadSanitizer starts a thread of its own beside the first one of the program.
  const bool helped = std::string(std::istreambuf_iterator<char>(maps), {}).find("libtsan") != std::string::npos;
  std::vector<std::string> found;
  for (const auto& task : std::filesystem::directory_iterator(process + "/task")) {
    const pid_t thread = std::stoi(task.path().filename());
    sched_param parameters{};
    const int policy = ::sched_getscheduler(thread);
    if (policy == SCHED_OTHER || policy < 0) continue;  // one that has just ended has none
    ::sched_getparam(thread, &parameters);
    CHECK(policy == SCHED_RR);
    CHECK(parameters.sched_priority == ::sched_get_priority_min(SCHED_RR));
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    if (!helped || name != "chatterd" || thread == world.chatterd->pid()) found.push_back(name);
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> expected;
  if (may_be) {
    expected.assign(1 + kProcessors, "lender");
    expected[0] = "express";
  }
  CHECK(found == expected);
}

TEST_CASE("chatterd has the device by which processors are kept awake where the system lets it, on a machine of few of them", "[access]") {
  constexpr const char* kDevice = "/dev/cpu_dma_latency";
  const bool may_have = Fd(::open(kDevice, O_WRONLY | O_CLOEXEC)).is_open() && kProcessors <= 4;
  const World world;
  REQUIRE(world.get("/").status() == 200);
  bool found = false;
  for (const auto& fd : std::filesystem::directory_iterator("/proc/" + std::to_string(world.chatterd->pid()) + "/fd")) {
    std::error_code gone;
    found = found || std::filesystem::read_symlink(fd.path(), gone) == kDevice;
  }
  CHECK(found == may_have);
}

TEST_CASE("the thread that asks Ollama is a real-time one until the answer has begun, but not when many wait for theirs", "[access]") {
  const bool may_be = may_have_real_time();
  World world;
  const auto askers = [&] {
    const auto names = real_time_threads(world.chatterd->pid());
    return static_cast<size_t>(std::count(names.begin(), names.end(), "worker"));
  };
  const auto answer_behind = [&](const Gate& gate) {
    world.ollama.answer_with([gate](Conn& conn) {
      conn.wait(gate);
      conn.stream_head();
      for (int i = 0; i < 4; ++i) {
        conn.pause(2);
        conn.line(token_line("a "));
      }
      conn.wait_until_client_leaves();
    });
  };
  std::vector<std::unique_ptr<Stream>> streams;
  const auto ask = [&] {
    const std::string app = fresh_app();
    streams.push_back(std::make_unique<Stream>(world.endpoint, chat_body(app, "prompt of " + app)));
    REQUIRE(world.ollama.wait_for_request("prompt of " + app) != nullptr);
  };
  const Gate first, others;
  answer_behind(first);
  ask();
  CHECK(eventually([&] { return askers() == (may_be ? 1 : 0); }));
  answer_behind(others);
  for (size_t i = 0; i <= kProcessors; ++i) ask();
  CHECK(eventually([&] { return askers() == (may_be ? kProcessors : 0); }));
  first.open();
  streams[0]->events(4);
  CHECK(eventually([&] { return askers() == (may_be ? kProcessors - 1 : 0); }));
  ask();
  CHECK(askers() == (may_be ? kProcessors - 1 : 0));
  others.open();
  for (const auto& stream : streams) stream->events(4);
  CHECK(eventually([&] { return askers() == 0; }));
}

TEST_CASE("a user that is not there is named, and nothing is served as root instead", "[access]") {
  if (::geteuid() != 0) return;
  const Database database;
  Arguments arguments = usual_arguments(database.conninfo(), "http://127.0.0.1:1");
  arguments.insert(arguments.end(), {"--user", "no-such-user"});
  const Finished finished = run_chatterd(arguments);
  INFO(finished.text());
  CHECK(finished.status == 2);
  CHECK(finished.err.find("--user") != std::string::npos);
}
