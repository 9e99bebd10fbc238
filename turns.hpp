// What bounds the streams: how many run at once, and that a conversation has one turn at a time, in this
// process and among all that share the database.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "db.hpp"
#include "net.hpp"
#include "result.hpp"

/// Counts running streams against the limits, of all clients together (contract 3.15) and of one
/// client. Any thread.
class StreamSlots {
 public:
  /// `per_client_max` 0: no limit of that kind.
  StreamSlots(size_t slots_max, size_t per_client_max) : slots_max_(slots_max), per_client_max_(per_client_max) {}

  /// One running stream; counts as long as it lives. It must not outlive the StreamSlots.
  class Slot {
   public:
    Slot(StreamSlots& slots, std::string client) : slots_(&slots), client_(std::move(client)) {}
    Slot(Slot&& other) noexcept : slots_(std::exchange(other.slots_, nullptr)), client_(std::move(other.client_)) {}
    Slot& operator=(Slot&&) = delete;
    ~Slot() {
      if (slots_ != nullptr) slots_->give_back(client_);
    }

   private:
    StreamSlots* slots_;
    std::string client_;
  };
  enum class Full { server, client };

  /// A slot for a stream to `client` (an address), or which limit it would go over.
  Result<Slot, Full> take(const std::string& client);
  /// From now on; streams that run beyond a new limit go on.
  void set_limits(size_t slots_max, size_t per_client_max);
  /// How many run now, and how many may.
  size_t taken();
  size_t most();

 private:
  void give_back(const std::string& client);

  std::mutex mutex_;
  // Guarded by mutex_:
  size_t slots_max_;
  size_t per_client_max_;
  size_t taken_ = 0;
  std::unordered_map<std::string, size_t> by_client_;
};

/// Lets one request at a time work on a conversation, in the order in which they came (contract
/// 3.13). Any thread. Within this process only: SharedTurn is for the others.
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

/// One request's turn in a conversation among all chatterds on the database (db.hpp says what holds);
/// ended, if it has begun, when it goes. To be had after the turn in Conversations, and given back before
/// it. Belongs to one thread at a time; must not outlive the Database.
class SharedTurn {
 public:
  SharedTurn(Database& database, std::string app_id);
  SharedTurn(SharedTurn&& other) noexcept : database_(std::exchange(other.database_, nullptr)), turn_(std::move(other.turn_)) {}
  SharedTurn& operator=(SharedTurn&&) = delete;
  ~SharedTurn() {
    if (database_ != nullptr) database_->end_turn(turn_);
  }

  /// Calls `begin` with the turn, again and again as long as it fails as DbFault::busy, until `deadline`, or
  /// until the client leaves or `conversations` is closed. Returns what it returned last.
  template <class Begin>
  auto begin(Conversations& conversations, Waiter& waiter, Deadline deadline, Begin begin) {
    auto outcome = begin(turn_);
    for (milliseconds pause = kFirstPause; is_busy(outcome) && wait(conversations, waiter, deadline, pause);) outcome = begin(turn_);
    return outcome;
  }
  const Turn& turn() const { return turn_; }

 private:
  static constexpr milliseconds kFirstPause{5};
  static bool is_busy(const std::optional<DbFailure>& failure) { return failure && failure->fault == DbFault::busy; }
  static bool is_busy(const Result<Conversation, DbFailure>& result) { return !result.ok() && result.error().fault == DbFault::busy; }
  bool wait(Conversations& conversations, Waiter& waiter, Deadline deadline, milliseconds& pause);

  Database* database_;
  Turn turn_;
};
