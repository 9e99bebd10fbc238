// The pump: streams that are carried from line to line on its threads, and every way back.
#include "tests/catch.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "ollama.hpp"
#include "pump.hpp"

namespace {

// Two ends of a connection: the one that chatterd has, and the peer's.
struct Pair {
  Pair() {
    int fds[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    own.reset(fds[0]);
    peer.reset(fds[1]);
  }
  bool say() const { return ::write(peer.get(), "x", 1) == 1; }
  bool hear() const {
    char byte = 0;
    return ::read(own.get(), &byte, 1) == 1;
  }
  UniqueFd own, peer;
};

struct Stop {
  // Any thread.
  bool now() const {
    const std::uint64_t one = 1;
    return ::write(fd.get(), &one, sizeof one) == sizeof one;
  }
  UniqueFd fd{::eventfd(0, EFD_CLOEXEC)};
};

// A listening socket in the place of Ollama.
struct Listener {
  Listener() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0);
    REQUIRE(::listen(fd.get(), 8) == 0);
    REQUIRE(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
    url = "http://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  }
  UniqueFd fd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  std::string url;
};

constexpr auto kPatience = std::chrono::seconds(15);
Deadline patience() { return Deadline::after(kPatience); }

// What a step returns: there is to be another one, or not.
Step go_on(bool more) { return more ? Step::one : Step::last; }

// The name of the thread that calls the step.
std::string carried_by(Pump& pump) {
  const Pair upstream, client;
  upstream.say();
  std::array<char, 16> name{};
  const auto wake = pump.carry(upstream.own.get(), client.own.get(), patience(), [&] {
    ::pthread_getname_np(::pthread_self(), name.data(), name.size());
    return Step::last;
  });
  return wake == Wake::ready ? name.data() : "nobody";
}

}  // namespace

TEST_CASE("the pump calls the step each time that there is something to read, until it says no", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(2);
  const Pair upstream, client;
  const auto caller = std::this_thread::get_id();
  // The same descriptors again and again, on either thread of the pump.
  for (int round = 0; round < 20; ++round) {
    int heard = 0;
    bool elsewhere = true;
    upstream.say();
    const auto wake = pump.carry(upstream.own.get(), client.own.get(), patience(), [&] {
      elsewhere = elsewhere && std::this_thread::get_id() != caller;
      if (!upstream.hear()) return Step::one;  // called though there was nothing
      if (++heard == 3) return Step::last;
      upstream.say();
      return Step::one;
    });
    CHECK(wake == Wake::ready);
    CHECK(heard == 3);
    CHECK(elsewhere);
  }
}

TEST_CASE("an upstream that has ended counts as readable", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(1);
  Pair upstream;
  const Pair client;
  upstream.peer.reset();
  int calls = 0;
  CHECK(pump.carry(upstream.own.get(), client.own.get(), patience(), [&] { return go_on(++calls < 3); }) == Wake::ready);
  CHECK(calls == 3);
}

TEST_CASE("a carried stream comes back at its deadline, also one that has passed", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(1);
  const Pair upstream, client;
  for (const int ms : {0, 60}) {
    const auto before = Clock::now();
    int calls = 0;
    CHECK(pump.carry(upstream.own.get(), client.own.get(), Deadline::after(milliseconds(ms)), [&] { return go_on(++calls > 0); }) == Wake::timed_out);
    CHECK(Clock::now() - before >= milliseconds(ms));
    CHECK(calls == 0);
  }
}

TEST_CASE("a carried stream comes back when its client ends its side, before or during", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(1);
  const Pair upstream;
  for (const bool before : {true, false}) {
    INFO((before ? "before" : "during"));
    const Pair client;
    const auto leave = [&] { ::shutdown(client.peer.get(), SHUT_WR); };
    before ? leave() : static_cast<void>(upstream.say());
    const auto wake = pump.carry(upstream.own.get(), client.own.get(), patience(), [&] {
      if (upstream.hear()) leave();
      return Step::one;
    });
    CHECK(wake == Wake::client_left);
  }
}

TEST_CASE("what a client sends meanwhile is no reason for a stream to come back", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(1);
  const Pair upstream, client;
  client.say();
  CHECK(pump.carry(upstream.own.get(), client.own.get(), Deadline::after(milliseconds(50)), [] { return Step::one; }) == Wake::timed_out);
}

TEST_CASE("all carried streams come back when the server stops, and so does one that comes later", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(2);
  constexpr size_t kStreams = 80;  // more than the pump makes at once
  std::vector<Pair> upstreams(kStreams), clients(kStreams);
  std::vector<std::optional<Wake>> wakes(kStreams);
  std::atomic<size_t> carried{0};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kStreams; ++i) {
    upstreams[i].say();
    threads.emplace_back([&, i] {
      wakes[i] = pump.carry(upstreams[i].own.get(), clients[i].own.get(), patience(), [&, i] {
        if (upstreams[i].hear()) ++carried;
        return Step::one;
      });
    });
  }
  const Deadline deadline = patience();
  while (carried < kStreams && !deadline.passed()) std::this_thread::yield();
  CHECK(carried == kStreams);
  CHECK(stop.now());
  for (std::thread& thread : threads) thread.join();
  for (const auto& wake : wakes) CHECK(wake == Wake::stopping);
  for (int i = 0; i < 4; ++i) {
    CHECK(pump.carry(upstreams[0].own.get(), clients[0].own.get(), patience(), [] { return Step::one; }) == Wake::stopping);
  }
}

TEST_CASE("a carry that begins as the server stops comes back", "[pump]") {
  for (int round = 0; round < 50; ++round) {
    const Stop stop;
    Pump pump(stop.fd.get());
    pump.start(2);
    const Pair upstream, client;
    CHECK(stop.now());
    CHECK(pump.carry(upstream.own.get(), client.own.get(), patience(), [] { return Step::one; }) == Wake::stopping);
  }
}

TEST_CASE("a descriptor that can't be watched is not carried, and leaves no trace", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(1);
  const Pair upstream, client;
  upstream.say();
  int calls = 0;
  const auto step = [&] { return go_on(++calls < 1); };
  const UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  REQUIRE(file);
  for (const auto& [fd, client_fd] : {std::pair(-1, client.own.get()), std::pair(upstream.own.get(), -1), std::pair(-1, -1),
                                      std::pair(file.get(), client.own.get()), std::pair(upstream.own.get(), file.get())}) {
    CHECK(pump.carry(fd, client_fd, patience(), step) == std::nullopt);
  }
  CHECK(calls == 0);
  CHECK(pump.carry(upstream.own.get(), client.own.get(), patience(), step) == Wake::ready);
  CHECK(calls == 1);
}

TEST_CASE("no step is called after the stream is back, however many are carried at once", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(2);
  constexpr int kThreads = 8, kCarries = 300;
  std::atomic<int> late{0}, crossed{0}, nothing{0};
  std::atomic<bool> over{false};
  std::vector<Pair> upstreams(kThreads), clients(kThreads);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int carry = 0; carry < kCarries; ++carry) {
        // Not atomic, and not shared: a thread of the pump may look at it during the carry only.
        bool lent = true;
        int left = carry % 4;
        const auto wake = pump.carry(upstreams[i].own.get(), clients[i].own.get(), Deadline::after(std::chrono::microseconds(carry % 7 * 200)), [&] {
          if (!lent) ++late;
          upstreams[i].hear();
          return go_on(--left > 0);
        });
        lent = false;
        if (!wake) ++nothing;
        if (wake == Wake::client_left || wake == Wake::stopping) ++crossed;
      }
    });
  }
  std::thread talker([&] {
    while (!over) {
      for (const Pair& upstream : upstreams) upstream.say();
    }
  });
  for (std::thread& thread : threads) thread.join();
  over = true;
  talker.join();
  CHECK(late == 0);
  CHECK(crossed == 0);
  CHECK(nothing == 0);
}

TEST_CASE("streams are carried by the express thread if there is one", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(2);
  CHECK(carried_by(pump) == "pump");
  pump.start_express();
  CHECK(carried_by(pump) == "express");
}

TEST_CASE("a stream that hurries comes back, one at the pace of reading does not", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(1);
  const bool hurries = GENERATE(true, false);
  const Pair upstream, client;
  upstream.say();
  int heard = 0;
  std::thread speaker;
  const auto wake = pump.carry(upstream.own.get(), client.own.get(), patience(), [&] {
    if (!upstream.hear()) return Step::one;
    if (++heard == 40) return Step::last;
    if (hurries) return go_on(upstream.say());
    if (speaker.joinable()) speaker.join();
    speaker = std::thread([&] {
      // A few lines together are no hurry.
      if (heard % 3 == 0) std::this_thread::sleep_for(2 * kReadingGap);
      upstream.say();
    });
    return Step::one;
  });
  if (speaker.joinable()) speaker.join();
  CHECK(wake == Wake::ready);
  CHECK((heard < 40) == hurries);
}

TEST_CASE("a stream whose lines come several at a time comes back, however long the pauses", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(1);
  const Pair upstream, client;
  upstream.say();  // and nobody hears it, so that it stays readable
  int calls = 0;
  const auto wake = pump.carry(upstream.own.get(), client.own.get(), patience(), [&] {
    std::this_thread::sleep_for(kReadingGap);
    return ++calls < 100 ? Step::many : Step::last;
  });
  CHECK(wake == Wake::ready);
  CHECK(calls < 100);
}

TEST_CASE("an express thread that is kept busy gives its streams back, and takes none for a while", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(1);
  pump.start_express();
  const Pair busy_upstream, quiet_upstream, busy_client, quiet_client;
  std::optional<Wake> quiet_wake;
  std::atomic<int> quiet_calls = 0;
  quiet_upstream.say();
  std::thread quiet([&] {
    quiet_wake = pump.carry(quiet_upstream.own.get(), quiet_client.own.get(), patience(),
                            [&] { return go_on(quiet_upstream.hear() && ++quiet_calls > 0); });
  });
  const Deadline begun_by = patience();
  while (quiet_calls == 0 && !begun_by.passed()) std::this_thread::yield();
  busy_upstream.say();  // and nobody hears it, so that it stays readable
  const auto spin = [] {
    for (const auto until = Clock::now() + milliseconds(5); Clock::now() < until;) {
    }
    return Step::one;
  };
  CHECK(pump.carry(busy_upstream.own.get(), busy_client.own.get(), patience(), spin) == Wake::ready);
  CHECK(carried_by(pump) == "pump");
  quiet.join();
  CHECK(quiet_wake == Wake::ready);
  CHECK(quiet_calls == 1);
  const Deadline deadline = patience();
  while (carried_by(pump) != "express" && !deadline.passed()) std::this_thread::yield();
  CHECK_FALSE(deadline.passed());
}

TEST_CASE("an order to stop brings back what the express thread has too", "[pump]") {
  const Stop stop;
  Pump pump(stop.fd.get());
  pump.start(1);
  pump.start_express();
  const Pair upstream, client;
  bool ordered = false;
  std::thread order([&] { ordered = stop.now(); });
  CHECK(pump.carry(upstream.own.get(), client.own.get(), patience(), [] { return Step::one; }) == Wake::stopping);
  order.join();
  CHECK(ordered);
}

TEST_CASE("without a pump a stream is carried by waiting for each line", "[pump]") {
  const Pair upstream;
  PlainWaiter waiter;
  int heard = 0;
  upstream.say();
  const auto wake = waiter.carry(upstream.own.get(), patience(), [&] {
    CHECK(upstream.hear());
    return go_on(++heard < 3 && upstream.say());
  });
  CHECK(wake == Wake::ready);
  CHECK(heard == 3);
  CHECK(waiter.carry(upstream.own.get(), Deadline::after(milliseconds(20)), [&] { return go_on(++heard > 0); }) == Wake::timed_out);
  CHECK(heard == 3);
}

TEST_CASE("an answer that breaks off or ends in a step leaves its descriptor open: it is being watched", "[pump]") {
  struct Case {
    const char* headers;
    const char* last;
    std::optional<Generation::Event> ended;
  };
  const std::vector<Case> cases = {{"Transfer-Encoding: chunked\r\n", "1", Generation::Event::broken},
                                   {"Transfer-Encoding: chunked\r\n", "hello\r\n", Generation::Event::broken},
                                   {"Transfer-Encoding: chunked\r\n", "0\r\n\r\n", Generation::Event::end},
                                   {"Content-Length: 5\r\n", "{}", Generation::Event::broken},
                                   {"Connection: close\r\n", "{}", Generation::Event::end}};
  for (const Case& one : cases) {
    INFO(one.headers << one.last);
    const Listener listener;
    Ollama ollama({*OllamaAddress::parse(listener.url)});
    const auto generation = ollama.start("POST", "/chat", "{}");
    PlainWaiter waiter;
    REQUIRE(generation->read_head(waiter, Deadline::after(milliseconds(20))) == Generation::Event::timed_out);
    UniqueFd peer(::accept4(listener.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const std::string head = std::string("HTTP/1.1 200 OK\r\n") + one.headers + "\r\n";
    REQUIRE(::write(peer.get(), head.data(), head.size()) == static_cast<ssize_t>(head.size()));
    REQUIRE(generation->read_head(waiter, patience()) == Generation::Event::head);
    const int fd = generation->fd();
    const std::string last = one.last;
    REQUIRE(::write(peer.get(), last.data(), last.size()) == static_cast<ssize_t>(last.size()));
    ::shutdown(peer.get(), SHUT_WR);
    const auto wake = waiter.carry(fd, patience(), [&] {
      std::array<char, 1024> buffer;
      generation->receive(buffer);
      std::string_view bytes;
      while (generation->read_at_hand(bytes)) {
      }
      return go_on(!generation->ended());
    });
    CHECK(wake == Wake::ready);
    CHECK(generation->ended() == one.ended);
    CHECK(generation->fd() == fd);
    CHECK(::fcntl(fd, F_GETFD) != -1);
    generation->abandon();
    CHECK(generation->fd() == -1);
  }
}
