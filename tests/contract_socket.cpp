// The socket that systemd listens on (sd_listen_fds(3)), a device that it opens, and the clients that come while chatterd
// is replaced.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

const Environment kOneSocket{{"LISTEN_FDS", "1"}, {"LISTEN_FDNAMES", "chatterd.socket"}};
const Environment kDevice{{"LISTEN_FDS", "1"}, {"LISTEN_FDNAMES", "cpu_dma_latency"}};

bool listens(const Fd& socket) {
  int value = 0;
  socklen_t length = sizeof value;
  return ::getsockopt(socket.get(), SOL_SOCKET, SO_ACCEPTCONN, &value, &length) == 0 && value == 1;
}

// Clients that connect one after the other, each with one request, until they are told to stop.
class Visitors {
 public:
  Visitors(const Endpoint& endpoint, int threads) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this, endpoint] {
        while (!ended_) visit(endpoint);
      });
    }
  }
  ~Visitors() { end(); }
  void end() {
    ended_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  [[nodiscard]] int answered() const { return answered_; }
  [[nodiscard]] int failed() const { return failed_; }
  [[nodiscard]] std::string first_failure() const {
    const std::lock_guard lock(mutex_);
    return first_failure_;
  }

 private:
  void visit(const Endpoint& endpoint) {
    std::string failure;
    try {
      const Response response = exchange(endpoint, {"GET", "/", "", {}});
      if (response.status() == 200 && response.complete) {
        ++answered_;
        return;
      }
      failure = response.text();
    } catch (const std::exception& error) {
      failure = error.what();
    }
    ++failed_;
    const std::lock_guard lock(mutex_);
    if (first_failure_.empty()) first_failure_ = failure;
  }

  std::atomic<bool> ended_{false};
  std::atomic<int> answered_{0}, failed_{0};
  mutable std::mutex mutex_;
  std::string first_failure_;  // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace

TEST_CASE("a socket passed by systemd is served in the place of --host and --port (sd_listen_fds(3))", "[socket]") {
  const Database database;
  const ScriptedOllama ollama;
  const Fd socket = listen_on_loopback(0);
  Arguments arguments = usual_arguments(database.conninfo(), ollama.url());
  arguments.insert(arguments.end(), {"--host", "192.0.2.1", "--port", "1"});  // neither could be had
  Chatterd chatterd(arguments, kOneSocket, socket.get());
  const Endpoint endpoint = chatterd.wait_until_ready();
  CHECK(endpoint.port == port_of(socket));
  CHECK(exchange(endpoint, {"GET", "/", "", {}}).status() == 200);
  CHECK(chatterd.stop() == 0);
  CHECK(listens(socket));
  CHECK(unexpected_lines(chatterd.err(), false).empty());
}

TEST_CASE("a device passed by systemd keeps processors awake for clients that connect or ask, for a moment (sd_listen_fds(3))", "[socket]") {
  const Database database;
  ScriptedOllama ollama;
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
  const Fd kernel(ends[0]);
  Fd device(ends[1]);
  Chatterd chatterd(usual_arguments(database.conninfo(), ollama.url()), kDevice, device.get());
  device = Fd();
  const Endpoint endpoint = chatterd.wait_until_ready();
  // What is demanded next: microseconds that a wake-up may take.
  const auto demanded = [&] {
    std::int32_t latency_us = -1;
    pollfd watched{kernel.get(), POLLIN, 0};
    if (::poll(&watched, 1, kPatienceMs) == 1) static_cast<void>(::recv(kernel.get(), &latency_us, sizeof latency_us, 0));
    return latency_us;
  };
  Connection client(endpoint);
  CHECK(demanded() == 0);
  CHECK(demanded() == 2'000'000'000);  // any
  ollama.answer_with(answer_tokens({"a"}));
  client.send(bytes_of({"POST", "/llmchat/", chat_body(fresh_app(), "x"), {}}));
  CHECK(demanded() == 0);
  CHECK(demanded() == 2'000'000'000);
  CHECK(chatterd.stop() == 0);
  CHECK(demanded() == -1);  // nobody has it any more
  CHECK(unexpected_lines(chatterd.err(), false).empty());
}

TEST_CASE("what is passed and is not one listening TCP socket is a wrong configuration (6, sd_listen_fds(3))", "[socket]") {
  const Database database;
  const Arguments arguments = usual_arguments(database.conninfo(), "http://127.0.0.1:1");
  const Fd listener = listen_on_loopback(0);
  const Fd bound = bind_loopback(0);
  const Fd datagram(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const Fd local(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const std::vector<std::pair<const Fd*, std::string>> wrong = {{&bound, "1"}, {&datagram, "1"}, {&local, "1"}, {&listener, "2"}, {&listener, "x"}};
  for (const auto& [fd, count] : wrong) {
    const Finished finished = run_chatterd(arguments, {{"LISTEN_FDS", count}}, kPatienceMs, fd->get());
    INFO(finished.text());
    CHECK(finished.status == 2);
    CHECK(finished.err.find("LISTEN_FDS: ") != std::string::npos);
    CHECK(lines_of(finished.err).size() == 1);
  }
}

TEST_CASE("a device that is said to be passed and can't be written to, or is not there, is a wrong configuration (6)", "[socket]") {
  const Database database;
  const Fd read_only(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const Fd device(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  const Environment two{{"LISTEN_FDS", "2"}, {"LISTEN_FDNAMES", "cpu_dma_latency:cpu_dma_latency"}};  // of which one is there
  for (const auto& [fd, passed] : {std::pair(read_only.get(), kDevice), std::pair(device.get(), two)}) {
    const Finished finished = run_chatterd(usual_arguments(database.conninfo(), "http://127.0.0.1:1"), passed, kPatienceMs, fd);
    INFO(finished.text());
    CHECK(finished.status == 2);
    CHECK(finished.err.find("cpu_dma_latency can't be written to") != std::string::npos);
  }
}

TEST_CASE("a socket that was passed to another process is left alone (sd_listen_fds(3))", "[socket]") {
  World world({{}, {{"LISTEN_FDS", "2"}, {"LISTEN_PID", "1"}}});
  CHECK(world.get("/").status() == 200);
}

TEST_CASE("while chatterd is replaced every client that connects gets its answer (sd_listen_fds(3))", "[socket]") {
  const Database database;
  const ScriptedOllama ollama;
  const Fd socket = listen_on_loopback(0);
  for (const bool tls : {true, false}) {
    CAPTURE(tls);
    const Arguments arguments = usual_arguments(database.conninfo(), ollama.url(), tls);
    auto running = std::make_unique<Chatterd>(arguments, kOneSocket, socket.get());
    Visitors visitors(running->wait_until_ready(), 4);
    for (int upgrade = 0; upgrade < 5; ++upgrade) {
      const int before = visitors.answered();
      REQUIRE(eventually([&] { return visitors.answered() > before + 20; }));
      REQUIRE(running->stop() == 0);
      CHECK(unexpected_lines(running->err(), false).empty());
      running = std::make_unique<Chatterd>(arguments, kOneSocket, socket.get());
      running->wait_until_ready();
    }
    const int before = visitors.answered();
    CHECK(eventually([&] { return visitors.answered() > before + 20; }));
    visitors.end();
    INFO(visitors.first_failure());
    CHECK(visitors.failed() == 0);
    CHECK(running->stop() == 0);
  }
}

TEST_CASE("an upgrade in the midst of a stream ends it whole, and the next chatterd has its reply (3.11, sd_listen_fds(3))", "[socket]") {
  Database database;
  ScriptedOllama ollama;
  const Fd socket = listen_on_loopback(0);
  const Arguments arguments = usual_arguments(database.conninfo(), ollama.url());
  Chatterd old_one(arguments, kOneSocket, socket.get());
  const Endpoint endpoint = old_one.wait_until_ready();
  Gate gate;
  ollama.answer_with(answer_then_wait({"first"}, gate));
  Stream stream(endpoint, chat_body("app", "one"));
  stream.events(1);
  old_one.signal(SIGTERM);
  REQUIRE_FALSE(old_one.wait_for_log({"event=stopping"}).empty());
  // Both at once: systemd starts the new one only after the old one's end, but other managers don't.
  Chatterd new_one(arguments, kOneSocket, socket.get());
  new_one.wait_until_ready();
  CHECK(exchange(endpoint, {"GET", "/", "", {}}).status() == 200);
  gate.open();
  CHECK(stream.rest().size() == 2);
  CHECK(old_one.wait_exit(kPatienceMs) == 0);
  ollama.answer_with(answer_tokens({"second"}));
  Stream next(endpoint, chat_body("app", "mark-next"));
  next.rest();
  CHECK(contents_sent(*ollama.wait_for_request("mark-next")) == "one,first,mark-next,");
  CHECK(new_one.stop() == 0);
}

TEST_CASE("a client accepted just before the stop has its first request answered, an idle one is closed at once (6)", "[socket]") {
  for (const bool tls : {true, false}) {
    CAPTURE(tls);
    Setup setup;
    setup.tls = tls;
    World world(setup);
    Connection idle(world.endpoint);
    idle.send(bytes_of({"GET", "/", "", {}}));
    REQUIRE(idle.read_response().status() == 200);
    Connection fresh(world.endpoint);  // has shaken hands, and asked for nothing yet
    REQUIRE(world.get("/").status() == 200);  // so the one before was accepted
    world.chatterd->signal(SIGTERM);
    REQUIRE_FALSE(world.chatterd->wait_for_log({"event=stopping"}).empty());
    CHECK_FALSE(idle.read_raw().has_value());
    fresh.send(bytes_of({"GET", "/", "", {}}));
    const Response response = fresh.read_response();
    CHECK(response.status() == 200);
    CHECK(response.head.header("Connection") == "close");
    CHECK(world.chatterd->wait_exit(kPatienceMs) == 0);
  }
}
