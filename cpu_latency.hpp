// Keeps idle processors awake for the moments in which a client waits for its first token.
//
// A processor with nothing to do halts, and then takes a few microseconds to be woken up, in a virtual machine 10 to 30,
// for there its host takes part. On the way from a client's hello to its first token a request passes some ten times
// from one thread to another, of the client, chatterd, PostgreSQL and Ollama, and each may have just fallen asleep.
// Linux lets root demand that a wake-up take no time (https://docs.kernel.org/power/pm_qos_interface.html): all
// processors of the machine that are idle then spin, for whoever is to be woken. It takes nothing from who runs here, but
// power, or a host's time; so it is demanded for milliseconds. When this process ends the kernel ends the demand.
#pragma once

#include <cstdint>
#include <mutex>

#include "net.hpp"

/// Any thread, concurrently, but for the one that watches the timer.
class CpuLatency {
 public:
  /// Owns `device`, which is cpu_dma_latency(), or one like it that somebody has passed. Nothing is demanded yet.
  explicit CpuLatency(UniqueFd device);

  /// Demands it from now on for as long as a client ordinarily waits; if it is demanded already, that begins anew. Takes
  /// some 10 us when it was not.
  void shorten();
  /// Whoever waits for this one to be readable calls restore_if_due() then.
  int timer_fd() const { return timer_.get(); }
  /// Ends the demand, unless shorten() was called meanwhile. By one thread.
  void restore_if_due();

 private:
  void demand(std::int32_t latency_us);
  void set_timer();

  const UniqueFd device_;
  const UniqueFd timer_;  // timerfd
  std::mutex mutex_;
  // Guarded by mutex_:
  Clock::time_point until_{};
  bool is_short_ = false;
};

/// The machine's device for such demands, open for writing. It is not open where it can't be had (only root may, and not in
/// every container), and where so many processors would spin that it is out of proportion.
UniqueFd cpu_dma_latency();
