// Carries streams from line to line on a few threads, so that a line costs no thread switch.
//
// Each stream has a thread of the pool, but from one line to the next that thread would only wait: a
// poll() and a switch to it and back for each line of each stream, which cost more than all the rest of
// relaying it. So it lends the stream to the pump, whose threads wait for many streams at once, and takes
// it back for everything that is not the next line. A lent stream is used by one thread at a time.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "net.hpp"

/// The threads that carry streams, one for each of `threads`, and their epolls. Any thread may call
/// carry(). All streams have to be back before it is destroyed.
class Pump {
 public:
  /// Once `stop_fd` is readable, every stream goes back to its thread.
  Pump(size_t threads, int stop_fd);
  ~Pump();
  Pump(const Pump&) = delete;
  Pump& operator=(const Pump&) = delete;

  /// Calls `step` on a thread of the pump each time that `fd` is readable (and at times when it is
  /// not), until it returns false (Wake::ready), the client on `client_fd` has ended its side, the
  /// deadline has passed or the server is to stop. Never calls it after the return. A step must not
  /// wait or throw, nor close `fd` or hand it on: all streams of its thread would suffer. Nothing: the
  /// kernel can't watch another descriptor; no step was called.
  std::optional<Wake> carry(int fd, int client_fd, Deadline deadline, const std::function<bool()>& step);

  /// Whether each of its threads still takes its turns; called now and then by one thread. False: one has not for
  /// longer than `patience`.
  bool beats(Clock::duration patience);

 private:
  struct Stream;
  class Loop;

  std::pair<Stream&, Loop&> take_stream();
  void give_back(Stream& stream);

  std::vector<std::unique_ptr<Loop>> loops_;
  std::mutex mutex_;
  // Guarded by mutex_:
  std::vector<std::unique_ptr<Stream[]>> blocks_;  // as many as there ever were at once: an event may still name one
  std::vector<Stream*> free_;
  size_t next_loop_ = 0;
};
