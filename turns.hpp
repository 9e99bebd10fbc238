// What bounds the streams: how many run at once, and that a conversation has one turn at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "net.hpp"

/// Counts running streams against a limit (contract 3.15). Any thread.
class StreamSlots {
 public:
  explicit StreamSlots(size_t slots_max) : slots_max_(slots_max) {}

  /// One running stream; counts as long as it lives.
  class Slot {
   public:
    explicit Slot(StreamSlots& slots) : slots_(&slots) {}
    Slot(Slot&& other) noexcept : slots_(std::exchange(other.slots_, nullptr)) {}
    Slot& operator=(Slot&&) = delete;
    ~Slot() {
      if (slots_ != nullptr) --slots_->taken_;
    }

   private:
    StreamSlots* slots_;
  };

  /// Nothing: all slots are taken.
  std::optional<Slot> take();

 private:
  const size_t slots_max_;
  std::atomic<size_t> taken_{0};
};

/// Lets one request at a time work on a conversation, in the order in which they came (contract
/// 3.13). Any thread. Within this process only.
class Conversations {
 public:
  /// The right to work on one conversation, given back when it goes. It must not outlive the
  /// Conversations.
  class Turn {
   public:
    Turn(Conversations& conversations, std::string app_id) : conversations_(&conversations), app_id_(std::move(app_id)) {}
    Turn(Turn&& other) noexcept : conversations_(std::exchange(other.conversations_, nullptr)), app_id_(std::move(other.app_id_)) {}
    Turn& operator=(Turn&&) = delete;
    ~Turn() {
      if (conversations_ != nullptr) conversations_->leave(app_id_);
    }

   private:
    Conversations* conversations_;
    std::string app_id_;
  };

  /// Waits for the turns before it. Nothing: not within the time, or no turns begin any more.
  std::optional<Turn> enter(const std::string& app_id, milliseconds wait);
  /// From here on no turn begins; those that wait for one are sent away at once.
  void close();
  bool closed();

 private:
  struct Waiting {
    std::condition_variable called;
    bool has_turn = false;
  };

  void leave(const std::string& app_id);

  std::mutex mutex_;
  /// Guarded by mutex_: the conversations at work, each with those that wait for it.
  std::unordered_map<std::string, std::deque<Waiting*>> at_work_;
  bool closed_ = false;  ///< likewise
};
