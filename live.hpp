// A value that is exchanged as a whole while other threads use it: what a reload changes.
#pragma once

#include <memory>
#include <mutex>
#include <utility>

/// Holds a T, or nothing, behind a lock that is held for a pointer's copy only. Who has got a value keeps it,
/// unchanged, for as long as it likes: take it once a request. Any thread.
template <class T>
class Live {
 public:
  explicit Live(std::shared_ptr<const T> value = nullptr) : value_(std::move(value)) {}
  explicit Live(T value) : value_(std::make_shared<const T>(std::move(value))) {}

  std::shared_ptr<const T> get() const {
    const std::lock_guard lock(mutex_);
    return value_;
  }
  void set(std::shared_ptr<const T> value) {
    const std::lock_guard lock(mutex_);
    value_.swap(value);  // the old one goes after the lock
  }
  void set(T value) { set(std::make_shared<const T>(std::move(value))); }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const T> value_;  // guarded by mutex_
};
