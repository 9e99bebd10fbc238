// What another process of this machine takes, read from the kernel while a load runs. One thread.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <ctime>

namespace bench {

class ProcessMeter {
 public:
  struct Reading {
    double rss_mib = 0;
    long threads = 0;
  };

  // Begins to measure. Throws std::runtime_error if there is no such process.
  explicit ProcessMeter(pid_t pid);

  // What lies between two samples is not seen by peak(). Throws once the process has ended.
  void sample();

  // User and system time since the beginning, of all its threads, also those that have ended.
  [[nodiscard]] double cpu_s() const;
  [[nodiscard]] const Reading& first() const { return first_; }
  [[nodiscard]] const Reading& last() const { return last_; }
  [[nodiscard]] const Reading& peak() const { return peak_; }

 private:
  [[nodiscard]] double cpu_now_s() const;
  pid_t pid_;
  clockid_t cpu_clock_{};
  double cpu_at_start_s_ = 0;
  Reading first_, last_, peak_;
};

}  // namespace bench
