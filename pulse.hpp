// Wakes a thread that waits on descriptors, and tells whether it still takes its turns.
#pragma once

#include <sys/eventfd.h>

#include <atomic>
#include <cstdint>

#include "net.hpp"

/// Belongs to a thread that waits for fd() among others, and calls answer() each time it is readable.
class Pulse {
 public:
  Pulse() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  int fd() const { return event_.get(); }
  /// The thread itself.
  void answer() {
    std::uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = ::read(fd(), &count, sizeof count);
    answered_ = asked_.load();
  }
  /// Makes fd() readable. Any thread.
  void wake() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(fd(), &one, sizeof one);
  }
  /// Asks the thread for an answer, unless an earlier question is still open. False: that one has been open for
  /// longer than `patience`. Always called by the same thread.
  bool beats(Clock::duration patience) {
    if (answered_ != asked_) return Clock::now() < asked_at_ + patience;
    asked_at_ = Clock::now();
    ++asked_;
    wake();
    return true;
  }

 private:
  UniqueFd event_;
  std::atomic<unsigned> asked_{0};
  std::atomic<unsigned> answered_{0};
  Clock::time_point asked_at_{};  // used by who asks
};
