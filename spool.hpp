// Replies that could not be stored while the database was away, on disk until they are.
//
// A reply goes into the spool, written through, before it is tried a second time: so it outlives
// chatterd itself. It leaves when the database has it; each has its id and its place, so storing it
// again after a crash does no harm.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "db.hpp"
#include "net.hpp"

/// One append-only file of JSON lines, `{"reply":{...}}` and `{"gone":"<id>"}`, emptied whenever nothing
/// waits in it. Any thread.
class Spool {
 public:
  Spool() = default;
  Spool(const Spool&) = delete;
  Spool& operator=(const Spool&) = delete;

  /// Opens the spool of one database in `folder`, making both, and reads what an earlier run has left. `run`
  /// is the name of this one. Several chatterds may share the folder; each has a file of its own. Returns what
  /// is wrong, as a sentence; without an open spool replies wait in memory only. Call it once, before any other.
  std::optional<std::string> open(const std::string& folder, const std::string& database_name, const std::string& run);

  /// Takes over what chatterds that shared the folder have left in their files and that don't run any
  /// more: they may never start again. open() does so too, perhaps still as root, and so reaches files that
  /// this can't open. Call it now and then.
  void adopt();
  /// The runs, by name, that have locked a file before and have it no more, so that they are over: their turns
  /// can be ended. Each is told once.
  std::vector<std::string> take_ended_runs();
  /// Keeps a reply; returns when it is on the disk, or false when it can't be put there.
  bool keep(const Reply& reply);
  /// The reply is stored, or not wanted any more.
  void remove(const std::string& id);
  /// A conversation begins anew: what waits for it must not come back.
  void remove_conversation(const std::string& app_id);
  /// The replies that wait for nobody but the spool: those of earlier runs, and those let go.
  std::vector<Reply> orphans();
  /// How many replies wait in it.
  size_t waiting();
  /// The stream that kept this reply has given up storing it: now the spool's owner does.
  void let_go(const std::string& id);

 private:
  struct Waiting {
    Reply reply;
    bool orphan;
  };

  std::optional<std::string> open_own(const std::string& folder, const std::string& database_name);
  UniqueFd open_file(int number, int flags, const char* suffix = "") const;
  void note_run(int number, const std::string& next, int flags);
  void read_own();
  size_t take_over(int other);
  bool append(const std::string& line, bool through);
  void remove_locked(const std::string& id);

  std::mutex mutex_;
  // Guarded by mutex_:
  UniqueFd folder_;
  std::string name_;  // of the files of this database
  int number_ = 0;    // of this chatterd's own
  UniqueFd file_;
  std::vector<Waiting> waiting_;
  bool torn_ = false;  // the file's last line: it has no end
  std::vector<std::string> ended_runs_;
};

/// The folder for state when none is given: what systemd says, or the user's own.
std::string default_state_folder();
