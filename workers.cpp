#include "workers.hpp"

#include <pthread.h>

#include <algorithm>
#include <system_error>

#include "log.hpp"

namespace {

// Long enough to carry a busy server over a lull, short enough that a burst leaves nothing behind after 10 s.
constexpr auto kIdleMax = std::chrono::seconds(7);
// For clients that come at once. What they take is replaced when their answers are under way.
constexpr size_t kStartedAhead = 2;

}  // namespace

Workers::Workers(size_t threads_max, std::function<void(Job)> serve) : serve_(std::move(serve)), threads_max_(threads_max) {}

Workers::~Workers() {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  queue_.clear();
  for (const auto& sleeper : sleepers_) sleeper->wake.notify_one();
  ended_.wait(lock, [this] { return threads_.empty(); });
  lock.unlock();
  for (std::thread& thread : finished_) thread.join();
}

Workers::Job Workers::submit(Job job) {
  std::unique_lock lock(mutex_);
  if (!sleepers_.empty()) {
    const std::shared_ptr<Sleeper> sleeper = std::move(sleepers_.back());
    sleepers_.pop_back();
    sleeper->job = std::move(job);
    lock.unlock();  // or else it would wake up only to wait for the lock
    sleeper->wake.notify_one();
  } else if (threads_.size() >= threads_max_ || !start_thread(job)) {
    if (!threads_.empty()) queue_.push_back(std::move(job));
  }
  return job;  // null where it was moved from
}

void Workers::set_threads_max(size_t threads_max) {
  const std::lock_guard lock(mutex_);
  threads_max_ = threads_max;
  // With threads at work a queue is taken up as they come free; the new ones help.
  while (!queue_.empty() && threads_.size() < threads_max_ && start_thread(queue_.front())) queue_.pop_front();
}

void Workers::start_ahead() {
  const std::lock_guard lock(mutex_);
  if (sleepers_.size() >= kStartedAhead || !queue_.empty() || threads_.size() >= threads_max_) return;
  Job none;
  // It counts as asleep before it is: a job that it is given meanwhile it finds.
  if (auto started = start_thread(none)) sleepers_.push_back(std::move(started));
}

size_t Workers::threads() {
  const std::lock_guard lock(mutex_);
  return threads_.size();
}

size_t Workers::busy() {
  const std::lock_guard lock(mutex_);
  return threads_.size() - sleepers_.size();
}

size_t Workers::waiting() {
  const std::lock_guard lock(mutex_);
  return queue_.size();
}

size_t Workers::threads_max() {
  const std::lock_guard lock(mutex_);
  return threads_max_;
}

bool Workers::can_grow() {
  const std::lock_guard lock(mutex_);
  return threads_.size() < threads_max_;
}

std::shared_ptr<Workers::Sleeper> Workers::start_thread(Job& job) {
  auto sleeper = std::make_shared<Sleeper>();
  std::list<std::thread> started(1);
  const auto self = started.begin();
  try {
    // The new thread can't end before it is in threads_: it takes the lock that the caller holds.
    *self = std::thread([this, self, sleeper, raw = job.get()] { run(self, sleeper, Job(raw)); });
  } catch (const std::system_error& error) {
    if (job) LogLine(LogLevel::warning, "no_new_thread").add("reason", errno_text(error.code().value())).add("threads", threads_.size());
    return nullptr;
  }
  static_cast<void>(job.release());
  threads_.splice(threads_.end(), started);
  return sleeper;
}

void Workers::run(std::list<std::thread>::iterator self, const std::shared_ptr<Sleeper>& sleeper, Job job) {
  ::pthread_setname_np(::pthread_self(), "worker");
  const bool given = job != nullptr;
  if (given) serve_(std::move(job));
  std::unique_lock lock(mutex_);
  job = given ? next_job(lock, sleeper) : sleep(lock, sleeper);
  while (job) {
    lock.unlock();
    serve_(std::move(job));
    lock.lock();
    job = next_job(lock, sleeper);
  }
  // Since the last look for a job nobody had the lock: none has come that counts on this thread.
  std::list<std::thread> finished;
  finished.swap(finished_);
  finished_.splice(finished_.end(), threads_, self);
  ended_.notify_all();
  lock.unlock();
  // Each that ends joins those before it, so that their stacks are given back without a caller's help.
  for (std::thread& thread : finished) thread.join();
}

// The next job for this thread; null when there has been none for a while.
Workers::Job Workers::next_job(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Sleeper>& self) {
  if (!queue_.empty()) {
    Job job = std::move(queue_.front());
    queue_.pop_front();
    return job;
  }
  if (stopping_) return nullptr;
  sleepers_.push_back(self);
  return sleep(lock, self);
}

// Of one of sleepers_.
Workers::Job Workers::sleep(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Sleeper>& self) {
  self->wake.wait_for(lock, kIdleMax, [&] { return self->job != nullptr || stopping_; });
  if (!self->job) std::erase(sleepers_, self);
  return std::move(self->job);
}
