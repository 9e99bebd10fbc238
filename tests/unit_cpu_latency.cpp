// What is asked of the kernel for a waiting client, read from the other end of a socket in the place of its device.
#include "tests/catch.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <cstdint>
#include <optional>

#include "cpu_latency.hpp"

namespace {

constexpr std::int32_t kNoTime = 0;
constexpr std::int32_t kAnyTime = 2'000'000'000;  // PM_QOS_CPU_LATENCY_DEFAULT_VALUE

class Device {
 public:
  Device() {
    int fds[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
    kernel_.reset(fds[0]);
    latency.emplace(UniqueFd(fds[1]));
  }
  // The next demand that has been made, if there is one.
  std::optional<std::int32_t> demanded() {
    std::int32_t value = 0;
    if (::recv(kernel_.get(), &value, sizeof value, MSG_DONTWAIT) != sizeof value) return std::nullopt;
    return value;
  }
  void wait_for_timer() {
    pollfd watched{latency->timer_fd(), POLLIN, 0};
    REQUIRE(::poll(&watched, 1, 10'000) == 1);
  }
  std::optional<CpuLatency> latency;

 private:
  UniqueFd kernel_;
};

}  // namespace

TEST_CASE("a wake-up is to take no time from the first call on, and any when it is over", "[cpu-latency]") {
  Device device;
  CHECK_FALSE(device.demanded());
  for (int round = 0; round < 2; ++round) {
    device.latency->shorten();
    device.latency->shorten();
    CHECK(device.demanded() == kNoTime);
    CHECK_FALSE(device.demanded());
    std::optional<std::int32_t> next;
    while (!next) {  // twice, for the second call has moved the end on
      device.wait_for_timer();
      device.latency->restore_if_due();
      next = device.demanded();
    }
    CHECK(next == kAnyTime);
  }
}

TEST_CASE("a client that comes just before the end has all of its time", "[cpu-latency]") {
  Device device;
  device.latency->shorten();
  CHECK(device.demanded() == kNoTime);
  bool went_on = false;
  // Where this thread is put off between the two calls its time is rightly over: then once more.
  for (const Deadline deadline = Deadline::after(std::chrono::seconds(10)); !went_on && !deadline.passed();) {
    device.wait_for_timer();
    device.latency->shorten();
    device.latency->restore_if_due();
    went_on = !device.demanded();
    if (!went_on) {
      device.latency->shorten();
      device.demanded();
    }
  }
  CHECK(went_on);
  device.wait_for_timer();
  device.latency->restore_if_due();
  CHECK(device.demanded() == kAnyTime);
}
