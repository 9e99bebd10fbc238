// Looks after the database in the background: the tables, the replies that wait on disk, the
// turns under way, idle connections.
#pragma once

#include <condition_variable>
#include <atomic>
#include <mutex>
#include <thread>

#include "db.hpp"
#include "net.hpp"
#include "spool.hpp"

/// One thread, which looks every second. Use it from one thread.
class Keeper {
 public:
  Keeper(Database& database, Spool& spool) : database_(database), spool_(spool) {}
  ~Keeper();
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;

  /// Makes the table usable, or finds that the database is away, which is no reason not to start; then
  /// goes on in the background. False: somebody has to act first, and has been told on standard error.
  bool begin();
  /// Whether later it was found that somebody has to act.
  bool failed() const { return failed_; }

 private:
  void run();
  bool prepare_table();
  void end_turns();
  void store_orphans();

  Database& database_;
  Spool& spool_;
  bool table_ready_ = false;  // used by begin(), then by the thread
  bool away_told_ = false;    // likewise
  Deadline adopt_at_ = Deadline::after(milliseconds(0));  // the thread's
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::condition_variable ended_;
  bool ending_ = false;  // guarded by mutex_
  std::thread thread_;
};
