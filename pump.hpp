// Carries streams from line to line on a few threads, so that a line costs no thread switch.
//
// Each stream has a thread of the pool, but from one line to the next that thread would only wait: a
// poll() and a switch to it and back for each line of each stream, which cost more than all the rest of
// relaying it. So it lends the stream to the pump, whose threads wait for many streams at once, and takes
// it back for everything that is not the next line. A lent stream is used by one thread at a time. The pump is for
// answers that come at the pace of reading; one that hurries keeps its thread at work, which passes on what has
// gathered meanwhile, and needs no other.
//
// The scheduler lets who writes a line write more before who waits for the first gets a processor: fair in shares, but
// where Ollama or clients are on this machine too, most of a line's way is that wait. So one of the pump's threads,
// the express one, is to be a real-time thread: it runs as soon as there is a line, for microseconds. It must not starve
// the machine: when very many lines keep it busy it lets those of half a millisecond or more come together, and when fewer
// keep it too busy it gives its streams to the others.
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

/// What stands at least between two lines of an answer that comes at the pace of reading: nobody reads 500 a second.
constexpr milliseconds kReadingGap{2};

/// The threads that carry streams, and their epolls. Any thread may call carry() once there is a thread that is not
/// the express one. All streams have to be back before it is destroyed.
class Pump {
 public:
  /// Once `stop_fd` is readable, every stream goes back to its thread.
  explicit Pump(int stop_fd);
  ~Pump();
  Pump(const Pump&) = delete;
  Pump& operator=(const Pump&) = delete;

  // Before the first carry():
  void start(size_t threads);
  /// The express thread, which inherits the caller's scheduling.
  void start_express();

  /// Calls `step` on a thread of the pump each time that `fd` is readable (and at times when it is
  /// not), until it returns Step::last (Wake::ready), the client on `client_fd` has ended its side, the
  /// deadline has passed or the server is to stop. Never calls it after the return. A step must not
  /// wait or throw, nor close `fd` or hand it on: all streams of its thread would suffer. Also Wake::ready: the
  /// stream hurries, or its thread is too busy. Nothing: the
  /// kernel can't watch another descriptor; no step was called.
  std::optional<Wake> carry(int fd, int client_fd, Deadline deadline, const std::function<Step()>& step);

  /// Whether each of its threads still takes its turns; called now and then by one thread. False: one has not for
  /// longer than `patience`.
  bool beats(Clock::duration patience);

 private:
  struct Stream;
  class Loop;

  std::pair<Stream&, Loop&> take_stream();
  void give_back(Stream& stream);

  const int stop_fd_;
  std::vector<std::unique_ptr<Loop>> loops_;
  std::unique_ptr<Loop> express_;
  std::mutex mutex_;
  // Guarded by mutex_:
  std::vector<std::unique_ptr<Stream[]>> blocks_;  // as many as there ever were at once: an event may still name one
  std::vector<Stream*> free_;
  size_t next_loop_ = 0;
};
