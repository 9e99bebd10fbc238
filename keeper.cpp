#include "keeper.hpp"

#include <iostream>

#include "log.hpp"
#include "metrics.hpp"

namespace {

constexpr auto kPause = std::chrono::seconds(1);
// Between two looks for files that other chatterds have left: a few dozen failing open()s.
constexpr auto kAdoptEvery = std::chrono::seconds(10);
// How long replies from the spool are stored one by one before turns are looked after again: they are renewed each 5 s.
constexpr auto kOrphansPatience = std::chrono::seconds(2);

}  // namespace

Keeper::~Keeper() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  ended_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool Keeper::begin() {
  if (!prepare_table()) return false;
  if (table_ready_) end_turns();
  thread_ = std::thread([this] { run(); });
  return true;
}

void Keeper::run() {
  std::unique_lock lock(mutex_);
  while (!ended_.wait_for(lock, kPause, [this] { return ending_; })) {
    lock.unlock();
    if (!table_ready_ && !prepare_table()) {
      failed_ = true;
      return;
    }
    if (table_ready_) {
      if (adopt_at_.passed()) {
        spool_.adopt();
        adopt_at_ = Deadline::after(kAdoptEvery);
      }
      end_turns();
      database_.keep_turns();
      store_orphans();
    }
    database_.close_idle();
    lock.lock();
  }
}

// False: somebody has to act.
bool Keeper::prepare_table() {
  const auto problem = database_.prepare_schema();
  if (!problem) {
    table_ready_ = true;
    metrics::database_up.set(1);
    if (away_told_) LogLine(LogLevel::info, "database_back");
    return true;
  }
  if (!problem->can_retry) {
    std::cerr << std::string(journal_prefix(LogLevel::error)) + "chatterd: " + problem->sentence + "\n" << std::flush;
    return false;
  }
  if (!std::exchange(away_told_, true)) LogLine(LogLevel::warning, "database_away").add("reason", problem->sentence);
  return true;
}

// Of chatterds that are gone. What can't be ended now is over by itself, some seconds later.
void Keeper::end_turns() {
  for (const std::string& run : spool_.take_ended_runs()) static_cast<void>(database_.end_turns_of(run));
}

void Keeper::store_orphans() {
  const Deadline deadline = Deadline::after(kOrphansPatience);
  for (const Reply& reply : spool_.orphans()) {
    if (deadline.passed()) return;
    const auto failure = database_.store_reply(reply);
    if (failure && failure->fault == DbFault::unavailable) return;  // all would fail: later
    if (failure) {
      LogLine(LogLevel::error, "reply_not_stored").add("reason", failure->detail);
      metrics::replies_lost.add();
    } else {
      metrics::replies_stored.add();
      LogLine(LogLevel::info, "spooled_reply_stored");
    }
    spool_.remove(reply.turn.id);
  }
}
