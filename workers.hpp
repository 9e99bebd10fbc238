// The pool of threads that serve requests, one request a thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "connection.hpp"

/// Starts with no thread and grows to `threads_max` as work comes in; a thread without work for a
/// while ends. The last thread that became idle is woken first: its stack and caches are warm, and the
/// others may end.
class Workers {
 public:
  using Job = std::unique_ptr<Connection>;

  /// `serve` is called on the pool's threads and must not throw.
  Workers(size_t threads_max, std::function<void(Job)> serve);
  /// Waits for all threads to end; jobs that none has begun are dropped.
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  /// Any thread. With all threads at work the job waits its turn. Returns null; or the job, when not
  /// even one thread can be started.
  [[nodiscard]] Job submit(Job job);
  /// From now on; threads beyond a new limit end when they have nothing to do.
  void set_threads_max(size_t threads_max);
  /// How many threads there are now.
  size_t threads();
  /// How many of them have a job.
  size_t busy();
  size_t threads_max();
  /// How many jobs wait for a thread.
  size_t waiting();
  /// Starts a thread for jobs to come, if few sleep and there may be more.
  void start_ahead();
  /// Whether more work would get a thread at once.
  bool can_grow();

 private:
  struct Sleeper {
    std::condition_variable wake;
    Job job;
  };

  void run(std::list<std::thread>::iterator self, const std::shared_ptr<Sleeper>& sleeper, Job job);
  std::shared_ptr<Sleeper> start_thread(Job& job);
  Job next_job(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Sleeper>& self);
  Job sleep(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Sleeper>& self);

  const std::function<void(Job)> serve_;
  std::mutex mutex_;
  std::condition_variable ended_;
  // Guarded by mutex_:
  size_t threads_max_;
  std::list<std::thread> threads_;
  std::list<std::thread> finished_;  // ended or about to, not yet joined
  std::vector<std::shared_ptr<Sleeper>> sleepers_;  // the last to fall asleep is at the back
  std::deque<Job> queue_;
  bool stopping_ = false;
};
