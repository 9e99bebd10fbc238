#include "lender.hpp"

#include <pthread.h>

#include <condition_variable>
#include <thread>

// The thread behind a loan, which does nothing but wait: for a borrower, and then for the borrower's end.
class Lender::Helper {
 public:
  explicit Helper(std::mutex& mutex) : mutex_(mutex) {
    pthread_mutexattr_t inherits;
    pthread_mutexattr_init(&inherits);
    pthread_mutexattr_setprotocol(&inherits, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&borrowed_, &inherits);
    pthread_mutexattr_destroy(&inherits);
    thread_ = std::thread([this] { run(); });
  }
  ~Helper() {
    {
      const std::lock_guard lock(mutex_);
      quitting_ = true;
    }
    called_.notify_one();
    thread_.join();
    pthread_mutex_destroy(&borrowed_);
  }
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;

  bool lent() const { return lent_; }
  void begin() {
    lent_ = true;
    pthread_mutex_lock(&borrowed_);  // free, or else it were lent
  }
  void call() { called_.notify_one(); }
  void end() { pthread_mutex_unlock(&borrowed_); }

 private:
  void run() {
    pthread_setname_np(pthread_self(), "lender");
    std::unique_lock lock(mutex_);
    while (true) {
      called_.wait(lock, [this] { return lent_ || quitting_; });
      if (!lent_) return;
      lock.unlock();
      pthread_mutex_lock(&borrowed_);
      pthread_mutex_unlock(&borrowed_);
      lock.lock();
      lent_ = false;
    }
  }

  std::mutex& mutex_;  // the lender's
  std::condition_variable called_;
  // Guarded by mutex_:
  bool lent_ = false;
  bool quitting_ = false;
  // Held by the borrower. Stays an ordinary one where the kernel has no inheritance, and init fails.
  pthread_mutex_t borrowed_ = PTHREAD_MUTEX_INITIALIZER;
  std::thread thread_;
};

void Lender::Return::operator()(Helper* helper) const { helper->end(); }

Lender::Lender(size_t loans_max) {
  for (size_t i = 0; i < loans_max; ++i) helpers_.push_back(std::make_unique<Helper>(mutex_));
}

Lender::~Lender() = default;

Lender::Loan Lender::lend() {
  std::unique_lock lock(mutex_);
  for (const auto& helper : helpers_) {
    if (helper->lent()) continue;
    helper->begin();
    lock.unlock();
    helper->call();
    return Loan(helper.get());
  }
  return nullptr;
}
