// The protocols of a service manager, as far as variables and messages go (sd_notify(3), sd_watchdog_enabled(3),
// sd_listen_fds(3)); the contract tests show them at work.
#include "tests/catch.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <thread>

#include "pulse.hpp"
#include "service.hpp"

namespace {

void set(const char* name, const std::string& value) { ::setenv(name, value.c_str(), 1); }

std::optional<milliseconds> watchdog_with(const std::string& usec, const std::string& pid) {
  set("NOTIFY_SOCKET", "/no/such/socket");
  set("WATCHDOG_USEC", usec);
  if (!pid.empty()) set("WATCHDOG_PID", pid);
  return ServiceManager().watchdog();
}

// A socket of the abstract kind that is bound to a name of the kernel's choice.
struct Listener {
  Listener() {
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    socklen_t length = sizeof(sa_family_t);
    REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&at), length) == 0);
    length = sizeof at;
    REQUIRE(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at), &length) == 0);
    name = "@" + std::string(at.sun_path + 1, length - sizeof(sa_family_t) - 1);
  }
  std::string next() const {
    char message[256];
    const ssize_t got = ::recv(fd.get(), message, sizeof message, MSG_DONTWAIT);
    return got < 0 ? "" : std::string(message, static_cast<size_t>(got));
  }
  UniqueFd fd{::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  std::string name;
};

}  // namespace

TEST_CASE("what systemd passes by variables is taken out of the environment (sd_notify(3))", "[service]") {
  const Listener listener;
  set("NOTIFY_SOCKET", listener.name);
  set("LISTEN_PID", "1");
  set("LISTEN_FDS", "1");
  set("LISTEN_FDNAMES", "x");
  ServiceManager manager;
  CHECK_FALSE(take_passed().value().socket);  // it is for process 1
  for (const char* name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) {
    CAPTURE(name);
    CHECK(std::getenv(name) == nullptr);
  }
  manager.ready();
  CHECK(listener.next() == "READY=1");
}

TEST_CASE("a status is sent when it has changed, and once a second at most (sd_notify(3))", "[service]") {
  const Listener listener;
  set("NOTIFY_SOCKET", listener.name);
  ServiceManager manager;
  manager.set_status("a");
  CHECK(listener.next() == "STATUS=a");
  manager.set_status("a");
  manager.set_status("b");
  CHECK(listener.next().empty());
}

TEST_CASE("without a manager, or with an address of another kind, nothing is said and nothing fails (sd_notify(3))", "[service]") {
  for (const std::string& address : {std::string(), std::string("vsock:2:1234"), "/" + std::string(200, 'x'), std::string("/no/such/socket")}) {
    CAPTURE(address);
    set("NOTIFY_SOCKET", address);
    set("WATCHDOG_USEC", "1000000");
    ServiceManager manager;
    manager.ready();
    manager.stopping(milliseconds(1));
    CHECK(manager.watchdog().has_value() == (address == "/no/such/socket"));
  }
}

TEST_CASE("the watchdog is for the process that it names, or for any (sd_watchdog_enabled(3))", "[service]") {
  CHECK(watchdog_with("2000000", "") == milliseconds(2000));
  CHECK(watchdog_with("2000000", std::to_string(::getpid())) == milliseconds(2000));
  CHECK_FALSE(watchdog_with("2000000", "1").has_value());
  CHECK_FALSE(watchdog_with("soon", "").has_value());
  CHECK_FALSE(watchdog_with("0", "").has_value());
}

TEST_CASE("a thread that does not answer has no pulse, however often it is asked, until it does", "[service]") {
  Pulse pulse;
  CHECK(pulse.beats(milliseconds(0)));  // asked just now
  CHECK_FALSE(pulse.beats(milliseconds(0)));
  CHECK(pulse.beats(std::chrono::hours(1)));  // patience
  pollfd woken{pulse.fd(), POLLIN, 0};
  CHECK(::poll(&woken, 1, 0) == 1);
  pulse.answer();
  CHECK(::poll(&woken, 1, 0) == 0);
  CHECK(pulse.beats(milliseconds(0)));
}
