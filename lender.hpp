// Lends real time to threads that have no right to it.
//
// chatterd may make a thread a real-time one only as long as it is root, or by a limit that few systems grant. But a
// thread that has become one stays one; and while it waits for a mutex that has priority inheritance, the kernel
// schedules the thread that holds it in its stead, with its priority (pthread_mutexattr_setprotocol(3P), futex(2)). So
// a lender's thread lends its real time by waiting for the borrower.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

/// Any thread, concurrently; must outlive its loans.
class Lender {
 private:
  class Helper;
  struct Return {
    void operator()(Helper* helper) const;
  };

 public:
  /// While it lives, its thread, which began it and has to end it, is a real-time one, from a few microseconds on. That
  /// comes before all ordinary threads of the machine: it is for a moment's work, and for the waiting around it.
  using Loan = std::unique_ptr<Helper, Return>;

  /// For so many loans at once. It starts as many threads, which inherit the caller's scheduling; where that is not real
  /// time, nothing is lent, and all works the same.
  explicit Lender(size_t loans_max);
  ~Lender();
  Lender(const Lender&) = delete;
  Lender& operator=(const Lender&) = delete;

  /// Null: all is lent.
  Loan lend();

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Helper>> helpers_;
};
