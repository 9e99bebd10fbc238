// Descriptors, deadlines and the one way in which chatterd waits on sockets.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <functional>
#include <string>
#include <utility>

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// A point in time after which something is given up. A value; any thread.
class Deadline {
 public:
  static Deadline after(Clock::duration time) { return Deadline(Clock::now() + time); }
  static Deadline at_time(Clock::time_point at) { return Deadline(at); }
  static Deadline never() { return Deadline(Clock::time_point::max()); }
  static Deadline earlier(Deadline a, Deadline b) { return Deadline(std::min(a.at_, b.at_)); }

  bool passed() const { return Clock::now() >= at_; }
  Clock::time_point at() const { return at_; }

  /// What is left, as poll() takes it: rounded up, so that a wait does not wake just before its
  /// time; 0 when passed, -1 for never.
  int left_ms() const {
    if (at_ == Clock::time_point::max()) return -1;
    const auto left = std::chrono::ceil<milliseconds>(at_ - Clock::now()).count();
    return static_cast<int>(std::clamp<long long>(left, 0, INT_MAX));
  }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

/// Owns a file descriptor and closes it.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

/// What ended a wait.
enum class Wake { ready, timed_out, client_left, stopping };

/// What a step of Waiter::carry() has come to.
enum class Step {
  last,  ///< there is to be no other
  one,   ///< it has passed on a line, or part of one
  many,  ///< it has passed on several lines, which had gathered
  full,  ///< it has passed on as much as one read takes: more has gathered
};

/// How code that serves a client waits on another descriptor: the same poll watches the client, so
/// that it is noticed at once when the client leaves, and the server's order to stop.
class Waiter {
 public:
  virtual ~Waiter() = default;
  /// Waits until `fd` (-1: none) has one of `events` or an error, or until something else ends the
  /// wait. Called by the thread that serves the request only.
  virtual Wake wait(int fd, short events, Deadline deadline) = 0;
  /// Waits until `fd` is readable and calls `step`, again and again until it returns Step::last
  /// (Wake::ready) or something else ends the wait. A step may run on another thread than the caller's,
  /// one at a time and none after the return; it must not wait or throw.
  virtual Wake carry(int fd, Deadline deadline, const std::function<Step()>& step) {
    Wake wake = Wake::ready;
    do {
      wake = wait(fd, POLLIN, deadline);
    } while (wake == Wake::ready && step() != Step::last);
    return wake;
  }
};

/// A Waiter with no client behind it: for checks at start and on the command line.
class PlainWaiter : public Waiter {
 public:
  Wake wait(int fd, short events, Deadline deadline) override {
    pollfd watched{fd, events, 0};
    return ::poll(&watched, 1, deadline.left_ms()) > 0 ? Wake::ready : Wake::timed_out;
  }
};

/// The text of an errno value, whichever strerror_r this is. Any thread.
std::string errno_text(int error_number);
