#include "cpu_latency.hpp"

#include <fcntl.h>
#include <sys/timerfd.h>

#include <thread>

namespace {

// From a client's hello to its request, or from that to the first token of an Ollama that has the model loaded, where all
// of them are on one small machine: twice what it takes. What takes longer is not for want of a few microseconds.
constexpr auto kShortFor = milliseconds(2);
// All that are idle spin, for one client: on larger machines that is out of proportion.
constexpr unsigned kProcessorsMax = 4;
// As linux/pm_qos.h has them: microseconds, and what means that nothing is demanded.
constexpr std::int32_t kNoTime = 0;
constexpr std::int32_t kAnyTime = 2'000'000'000;

}  // namespace

CpuLatency::CpuLatency(UniqueFd device) : device_(std::move(device)), timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {}

void CpuLatency::shorten() {
  const std::lock_guard lock(mutex_);
  until_ = Clock::now() + kShortFor;
  if (is_short_ || !timer_) return;
  is_short_ = true;
  demand(kNoTime);
  set_timer();
}

void CpuLatency::restore_if_due() {
  std::uint64_t expirations = 0;
  [[maybe_unused]] const ssize_t got = ::read(timer_.get(), &expirations, sizeof expirations);
  const std::lock_guard lock(mutex_);
  if (Clock::now() < until_) return set_timer();
  demand(kAnyTime);
  is_short_ = false;
}

void CpuLatency::demand(std::int32_t latency_us) {
  // One that is not heard leaves things as they are.
  [[maybe_unused]] const ssize_t written = ::write(device_.get(), &latency_us, sizeof latency_us);
}

// For until_; Clock is CLOCK_MONOTONIC.
void CpuLatency::set_timer() {
  const auto since_boot = until_.time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since_boot);
  itimerspec time{};
  time.it_value = {seconds.count(), std::chrono::nanoseconds(since_boot - seconds).count()};
  ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &time, nullptr);
}

UniqueFd cpu_dma_latency() {
  if (std::thread::hardware_concurrency() > kProcessorsMax) return UniqueFd();
  return UniqueFd(::open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC));
}
