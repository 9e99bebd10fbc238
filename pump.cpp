#include "pump.hpp"

#include <pthread.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <span>

#include "pulse.hpp"

namespace {

constexpr int kEventsMax = 64;
// Made together, so that among memory that is freed again they keep few pages from being given back.
constexpr size_t kBlockStreams = 64;

// The express thread may be busy for four fifths of such a time: it leaves the machine, which may have one processor
// only, the rest. One that was busier, with lines that don't gather, leaves its streams and all others to the other threads
// for as long as kExpressRest.
constexpr auto kExpressWindow = milliseconds(50);
constexpr double kExpressBusyMax = 0.8;
constexpr auto kExpressRest = std::chrono::seconds(1);
// When it is this busy with this many lines a second, all programs here wait for a processor, and a wake-up for each line,
// of the express thread and of those who write and read them, is a large part of the work: it lets the lines of a moment
// come together instead. On a machine that has processors to spare each line would only come later (docs/performance.md).
constexpr double kExpressGatherFrom = 12'500;
constexpr double kExpressGatherFromBusy = 0.45;
// For this long, or longer where it would be busier than kExpressBusyMax: to rest would wake up a thread for each stream,
// when there is least to spare.
constexpr auto kExpressGather = std::chrono::microseconds(500);
// A stream hurries after so many pieces in a row that were of several lines, or so soon after the last: a few lines
// that come together are no hurry yet.
constexpr int kHurriedPieces = 4;

// Behind a round of the express thread, where lines gather.
std::chrono::duration<double> pause_after(Clock::duration round) {
  return std::max<std::chrono::duration<double>>(kExpressGather, round * (1 / kExpressBusyMax - 1));
}

}  // namespace

// What one stream is to its loop. It is never freed before the pump: an event that was on its way when
// the stream went back finds it idle, or finds another stream, for which it is one call too many.
struct Pump::Stream {
  struct Watched {
    Stream* stream;
    bool is_client;
  };
  Watched upstream{this, false};
  Watched client{this, true};
  std::mutex mutex;  // held during a step
  std::condition_variable back;
  // Guarded by mutex:
  const std::function<Step()>* step = nullptr;  // null: it is not lent
  Loop* loop = nullptr;
  int fd = -1;
  int client_fd = -1;
  Wake outcome = Wake::timed_out;
  Clock::time_point last_piece_at;
  int hurried_pieces = 0;

  bool hurries(Step carried, Clock::time_point at);
  void end(Wake why);
};

bool Pump::Stream::hurries(Step carried, Clock::time_point at) {
  hurried_pieces = carried != Step::one || at - last_piece_at < kReadingGap ? hurried_pieces + 1 : 0;
  last_piece_at = at;
  return hurried_pieces >= kHurriedPieces;
}

class Pump::Loop {
 public:
  Loop(Pump& pump, bool express) : pump_(pump), express_(express), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    watch(pump.stop_fd_, EPOLLIN | EPOLLONESHOT, &stopping_);
    watch(pulse_.fd(), EPOLLIN, &pulse_);
    thread_ = std::thread([this] { run(); });
  }
  ~Loop() {
    quitting_ = true;
    pulse_.wake();
    thread_.join();
  }

  bool watch(int fd, std::uint32_t events, void* who) {
    epoll_event event{};
    event.events = events;
    event.data.ptr = who;
    return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }
  void forget(int fd) { ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }
  bool stopping() const { return stopping_; }
  bool rests() const { return Clock::now() < rests_until_.load(); }
  bool beats(Clock::duration patience) { return pulse_.beats(patience); }

 private:
  void run();
  void handle(const Stream::Watched& watched, Clock::time_point woken_at);
  void end_all(Wake why, bool also_of_others);
  void note_round(Clock::time_point began, Clock::time_point ended, int events);

  Pump& pump_;
  const bool express_;
  // Of the express thread, used by it alone:
  Clock::time_point window_began_ = Clock::now();
  Clock::duration busy_{};
  int events_ = 0;  // of the window
  bool gathers_ = false;
  std::atomic<Clock::time_point> rests_until_{Clock::time_point::min()};
  UniqueFd epoll_;
  Pulse pulse_;
  std::atomic<bool> quitting_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

// Both descriptors are let go before their owner can close them, and another stream get their numbers.
void Pump::Stream::end(Wake why) {
  loop->forget(fd);
  loop->forget(client_fd);
  step = nullptr;
  outcome = why;
  back.notify_one();
}

void Pump::Loop::run() {
  ::pthread_setname_np(::pthread_self(), express_ ? "express" : "pump");
  std::array<epoll_event, kEventsMax> events;
  while (!quitting_) {
    const int count = ::epoll_wait(epoll_.get(), events.data(), kEventsMax, -1);
    const auto woken_at = Clock::now();
    for (int i = 0; i < count; ++i) {
      void* who = events[static_cast<size_t>(i)].data.ptr;
      if (who == &pulse_) {
        pulse_.answer();
      } else if (who == &stopping_) {
        stopping_ = true;
        end_all(Wake::stopping, true);
      } else {
        handle(*static_cast<const Stream::Watched*>(who), woken_at);
      }
    }
    if (!express_) continue;
    const auto ended_at = Clock::now();
    note_round(woken_at, ended_at, count);
    if (gathers_) std::this_thread::sleep_for(pause_after(ended_at - woken_at));
  }
}

// Of the express thread, after each round of events: whether it is so busy that lines are to gather, or too busy.
void Pump::Loop::note_round(Clock::time_point began, Clock::time_point ended, int events) {
  busy_ += ended - began;
  events_ += events;
  const auto window = ended - window_began_;
  if (window < kExpressWindow) return;
  gathers_ = busy_ > window * kExpressGatherFromBusy && events_ > kExpressGatherFrom * std::chrono::duration<double>(window).count();
  if (!gathers_ && busy_ > window * kExpressBusyMax) {
    rests_until_ = ended + kExpressRest;
    end_all(Wake::ready, false);
  }
  window_began_ = ended;
  busy_ = {};
  events_ = 0;
}

void Pump::Loop::handle(const Stream::Watched& watched, Clock::time_point woken_at) {
  Stream& stream = *watched.stream;
  const std::lock_guard lock(stream.mutex);
  if (stream.step == nullptr) return;
  if (!watched.is_client) {
    const Step carried = (*stream.step)();
    if (carried == Step::last || stream.hurries(carried, woken_at)) stream.end(Wake::ready);
    return;
  }
  // Rare enough to ask whether it is this client that has left, not the one before.
  pollfd client{stream.client_fd, POLLRDHUP, 0};
  if (::poll(&client, 1, 0) > 0) stream.end(Wake::client_left);
}

// Gives streams back to their threads: its own, or those of the whole pump.
void Pump::Loop::end_all(Wake why, bool also_of_others) {
  const std::lock_guard lock(pump_.mutex_);
  for (const auto& block : pump_.blocks_) {
    for (Stream& stream : std::span(block.get(), kBlockStreams)) {
      const std::lock_guard stream_lock(stream.mutex);
      if (stream.step != nullptr && (also_of_others || stream.loop == this)) stream.end(why);
    }
  }
}

Pump::Pump(int stop_fd) : stop_fd_(stop_fd) {}

Pump::~Pump() {
  loops_.clear();
  express_.reset();
}

void Pump::start(size_t threads) {
  for (size_t i = 0; i < threads; ++i) loops_.push_back(std::make_unique<Loop>(*this, false));
}

void Pump::start_express() { express_ = std::make_unique<Loop>(*this, true); }

bool Pump::beats(Clock::duration patience) {
  bool all = express_ == nullptr || express_->beats(patience);
  for (const auto& loop : loops_) all = loop->beats(patience) && all;
  return all;
}

std::pair<Pump::Stream&, Pump::Loop&> Pump::take_stream() {
  const bool by_express = express_ && !express_->rests();
  const std::lock_guard lock(mutex_);
  if (free_.empty()) {
    blocks_.push_back(std::make_unique<Stream[]>(kBlockStreams));
    for (size_t i = kBlockStreams; i > 0; --i) free_.push_back(&blocks_.back()[i - 1]);
  }
  Stream* stream = free_.back();
  free_.pop_back();
  return {*stream, by_express ? *express_ : *loops_[next_loop_++ % loops_.size()]};
}

void Pump::give_back(Stream& stream) {
  const std::lock_guard lock(mutex_);
  free_.push_back(&stream);
}

std::optional<Wake> Pump::carry(int fd, int client_fd, Deadline deadline, const std::function<Step()>& step) {
  auto [stream, loop] = take_stream();
  bool watched = false;
  Wake outcome = Wake::timed_out;
  {
    std::unique_lock lock(stream.mutex);
    stream.step = &step;
    stream.loop = &loop;
    stream.fd = fd;
    stream.client_fd = client_fd;
    stream.hurried_pieces = 0;
    watched = loop.watch(client_fd, EPOLLRDHUP, &stream.client) && loop.watch(fd, EPOLLIN, &stream.upstream);
    if (watched && !loop.stopping()) {
      const auto is_back = [&lent = stream] { return lent.step == nullptr; };
      if (!stream.back.wait_until(lock, deadline.at(), is_back)) stream.end(Wake::timed_out);
    } else {
      stream.end(Wake::stopping);
    }
    outcome = stream.outcome;
  }
  give_back(stream);
  return watched ? std::optional(outcome) : std::nullopt;
}
