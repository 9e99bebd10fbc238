// Many connections that take their time.
#include <poll.h>

#include <list>

#include "tests/faults/world.hpp"

using namespace faults;

namespace {

// How many of these the peer has closed.
size_t closed_of(const std::vector<Fd>& connections) {
  size_t closed = 0;
  for (const Fd& connection : connections) closed += peer_left(connection.get()) ? 1 : 0;
  return closed;
}

std::vector<Fd> connect_many(const World& world, int count) {
  std::vector<Fd> connections;
  for (int i = 0; i < count; ++i) connections.push_back(connect_to("127.0.0.1", world.endpoint().port, Deadline(kPatienceMs)));
  return connections;
}

// Sends a byte of the text on each connection, and one more every 2 s, until all are closed or the time is
// over. Returns how long it took, or -1.
double drip(const std::vector<Fd>& connections, const std::string& text, int patience_ms) {
  const auto began = Clock::now();
  auto next = began;
  size_t at = 0;
  const bool closed = eventually(
      [&] {
        if (Clock::now() >= next && at < text.size()) {
          for (const Fd& connection : connections) send_all(connection.get(), text.substr(at, 1));
          ++at;
          next += std::chrono::seconds(2);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        return closed_of(connections) == connections.size();
      },
      patience_ms);
  return closed ? ms_between(began, Clock::now()) : -1;
}

void check_closed(const World& world, double after_ms, int limit_ms) {
  report("all were closed after " + ms_text(after_ms) + ", the limit being " + std::to_string(limit_ms) + " ms");
  CHECK(after_ms > 0);
  // They were not made all at once, and a sanitizer's machine is slow.
  CHECK(after_ms < world.within_ms(limit_ms + 2000));
}

void hold_silent(int count) {
  World world({.arguments = {"--header-timeout", "3"}});
  const std::vector<Fd> connections = connect_many(world, count);
  Prober prober(world);
  check_closed(world, drip(connections, "", 20000), 3000);
  prober.expect_within(world.within_ms(1000));
  world.finish();
}

void hold_idle(int count) {
  World world({.arguments = {"--idle-timeout", "4"}});
  std::list<Connection> connections;
  Prober prober(world);
  for (int i = 0; i < count; ++i) {
    Connection& connection = connections.emplace_back(world.endpoint());
    connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    REQUIRE(connection.read_response().status() == 200);
  }
  const auto began = Clock::now();
  // The last one made is closed last.
  CHECK_FALSE(connections.back().read_raw(20000).has_value());
  check_closed(world, ms_between(began, Clock::now()), 4000);
  for (Connection& connection : connections) CHECK_FALSE(connection.read_raw(1000).has_value());
  prober.expect_within(world.within_ms(1000));
  world.finish();
}

}  // namespace

TEST_CASE("1,000 silent connections are closed at their deadline and delay nobody", "[fault][slow][connections]") { hold_silent(1000); }

TEST_CASE("200 silent connections are closed at their deadline and delay nobody", "[fault][short][connections]") { hold_silent(200); }

TEST_CASE("500 connections that send a header byte every 2 s are closed at their deadline and delay nobody", "[fault][slow][connections]") {
  World world({.arguments = {"--header-timeout", "5"}, .tls = false});
  const std::vector<Fd> connections = connect_many(world, 500);
  Prober prober(world);
  check_closed(world, drip(connections, "GET / HTTP/1.1\r\nHost: x\r\n", 20000), 5000);
  prober.expect_within(world.within_ms(1000));
  world.finish();
}

TEST_CASE("500 connections that send a byte of a body every 2 s are closed at their deadline and delay nobody", "[fault][slow][connections]") {
  World world({.arguments = {"--body-timeout", "5"}, .tls = false});
  const std::vector<Fd> connections = connect_many(world, 500);
  for (const Fd& connection : connections) {
    send_all(connection.get(), "POST /llmchat/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n");
  }
  Prober prober(world);
  check_closed(world, drip(connections, "{\"appID\":\"never whole\"", 20000), 5000);
  prober.expect_within(world.within_ms(1000));
  world.finish();
}

TEST_CASE("2,000 idle keep-alive connections are closed at their deadline and delay nobody", "[fault][slow][connections]") { hold_idle(2000); }

TEST_CASE("pipelined requests are answered in their order, also of a client that has ended its side", "[fault][short][connections]") {
  World world;
  {
    Connection connection(world.endpoint());
    std::string requests;
    for (int i = 0; i < 100; ++i) requests += i % 2 == 0 ? "GET / HTTP/1.1\r\nHost: x\r\n\r\n" : "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
    connection.send(requests);
    for (int i = 0; i < 100; ++i) CHECK(connection.read_response().status() == (i % 2 == 0 ? 200 : 404));
  }
  std::vector<Connection> connections;
  for (int i = 0; i < 50; ++i) {
    Connection& connection = connections.emplace_back(world.endpoint());
    connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n");
    connection.half_close();
  }
  for (Connection& connection : connections) {
    CHECK(connection.read_response().status() == 200);
    CHECK(connection.read_response().status() == 200);
  }
  world.finish();
}
