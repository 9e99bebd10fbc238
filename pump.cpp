#include "pump.hpp"

#include <pthread.h>
#include <sys/epoll.h>

#include <array>
#include <atomic>
#include <span>

#include "pulse.hpp"

namespace {

constexpr int kEventsMax = 64;
// Made together, so that among memory that is freed again they keep few pages from being given back.
constexpr size_t kBlockStreams = 64;

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
  const std::function<bool()>* step = nullptr;  // null: it is not lent
  Loop* loop = nullptr;
  int fd = -1;
  int client_fd = -1;
  Wake outcome = Wake::timed_out;

  void end(Wake why);
};

class Pump::Loop {
 public:
  Loop(Pump& pump, int stop_fd) : pump_(pump), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    watch(stop_fd, EPOLLIN | EPOLLONESHOT, &stopping_);
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
  bool beats(Clock::duration patience) { return pulse_.beats(patience); }

 private:
  void run();
  void handle(const Stream::Watched& watched);
  void stop();

  Pump& pump_;
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
  ::pthread_setname_np(::pthread_self(), "pump");
  std::array<epoll_event, kEventsMax> events;
  while (!quitting_) {
    const int count = ::epoll_wait(epoll_.get(), events.data(), kEventsMax, -1);
    for (int i = 0; i < count; ++i) {
      void* who = events[static_cast<size_t>(i)].data.ptr;
      if (who == &pulse_) {
        pulse_.answer();
      } else if (who == &stopping_) {
        stop();
      } else {
        handle(*static_cast<const Stream::Watched*>(who));
      }
    }
  }
}

void Pump::Loop::handle(const Stream::Watched& watched) {
  Stream& stream = *watched.stream;
  const std::lock_guard lock(stream.mutex);
  if (stream.step == nullptr) return;
  if (!watched.is_client) {
    if (!(*stream.step)()) stream.end(Wake::ready);
    return;
  }
  // Rare enough to ask whether it is this client that has left, not the one before.
  pollfd client{stream.client_fd, POLLRDHUP, 0};
  if (::poll(&client, 1, 0) > 0) stream.end(Wake::client_left);
}

void Pump::Loop::stop() {
  stopping_ = true;
  const std::lock_guard lock(pump_.mutex_);
  for (const auto& block : pump_.blocks_) {
    for (Stream& stream : std::span(block.get(), kBlockStreams)) {
      const std::lock_guard stream_lock(stream.mutex);
      if (stream.step != nullptr) stream.end(Wake::stopping);
    }
  }
}

Pump::Pump(size_t threads, int stop_fd) {
  for (size_t i = 0; i < threads; ++i) loops_.push_back(std::make_unique<Loop>(*this, stop_fd));
}

Pump::~Pump() { loops_.clear(); }

bool Pump::beats(Clock::duration patience) {
  bool all = true;
  for (const auto& loop : loops_) all = loop->beats(patience) && all;
  return all;
}

std::pair<Pump::Stream&, Pump::Loop&> Pump::take_stream() {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) {
    blocks_.push_back(std::make_unique<Stream[]>(kBlockStreams));
    for (size_t i = kBlockStreams; i > 0; --i) free_.push_back(&blocks_.back()[i - 1]);
  }
  Stream* stream = free_.back();
  free_.pop_back();
  return {*stream, *loops_[next_loop_++ % loops_.size()]};
}

void Pump::give_back(Stream& stream) {
  const std::lock_guard lock(mutex_);
  free_.push_back(&stream);
}

std::optional<Wake> Pump::carry(int fd, int client_fd, Deadline deadline, const std::function<bool()>& step) {
  auto [stream, loop] = take_stream();
  bool watched = false;
  Wake outcome = Wake::timed_out;
  {
    std::unique_lock lock(stream.mutex);
    stream.step = &step;
    stream.loop = &loop;
    stream.fd = fd;
    stream.client_fd = client_fd;
    watched = loop.watch(client_fd, EPOLLRDHUP, &stream.client) && loop.watch(fd, EPOLLIN, &stream.upstream);
    if (watched && !loop.stopping()) {
      const auto is_back = [&stream = stream] { return stream.step == nullptr; };
      if (!stream.back.wait_until(lock, deadline.at(), is_back)) stream.end(Wake::timed_out);
    } else {
      stream.end(Wake::stopping);
    }
    outcome = stream.outcome;
  }
  give_back(stream);
  return watched ? std::optional(outcome) : std::nullopt;
}
