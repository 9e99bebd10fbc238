// The database: conversations and public chatts in PostgreSQL's table chatts (contract, section 4),
// and whose turn it is in a conversation.
//
// Nothing outside the db modules knows SQL or libpq. Every call waits no longer than its deadline
// (--db-timeout) for a connection, the round trip and the answer together, and holds no connection
// after it has returned. Where the server has a name, a new connection also waits for the resolver, as
// long as resolv.conf(5) says: libpq asks it at once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "net.hpp"
#include "request.hpp"
#include "result.hpp"
#include "text.hpp"

struct pg_result;

namespace db_internal {
class Connection;
class Servers;
struct Execution;
}  // namespace db_internal

enum class DbFault {
  refused,      ///< the database does not take the value (SQLSTATE class 22 or 23)
  busy,         ///< another turn is under way in the conversation; nothing was done
  too_long,     ///< the conversation is longer than --max-history; nothing is left of what was done
  unavailable,  ///< it can't be reached, is out of resources, or did not answer in time
  retry,        ///< nothing was done, and the same again may succeed; callers of Database never see it
  failed,       ///< anything else
};

struct DbFailure {
  DbFault fault;
  bool outcome_unknown;  ///< the change may have been made or not; false: it was not made
  std::string detail;    ///< for the log: no values, no text of a message
};

/// Rows of a result, as views into it. Belongs to one thread.
class Rows {
 public:
  explicit Rows(pg_result* owned);
  Rows(Rows&&) noexcept = default;
  Rows& operator=(Rows&&) noexcept = default;

  size_t size() const;
  size_t memory_bytes() const;  ///< all of them take so much, which is more than their text
  std::string_view text(size_t row, int column) const;  ///< "" for NULL
  bool is_null(size_t row, int column) const;
  /// A bigint (0 for NULL), or a timestamptz as microseconds since 2000-01-01 UTC (kNoTime for NULL).
  std::int64_t integer(size_t row, int column) const;

 private:
  struct Deleter {
    void operator()(pg_result* result) const;
  };
  std::unique_ptr<pg_result, Deleter> result_;
};

/// A conversation as it was read back, its last `stored` rows just stored.
struct Conversation {
  enum Column { name, message };
  Rows rows;
  /// The place in the order that is kept for the reply to the last prompt; none: at the end.
  std::optional<std::int64_t> reply_place;
};

/// One request's right to work on one conversation, among all chatterds on the database (contract 3.13).
struct Turn {
  std::string app_id;
  std::string id;  ///< a UUID made once a turn; also its reply's, so that storing that again is noticed
};

struct Reply {
  Turn turn;
  std::string text;
  std::optional<std::int64_t> place;
};

/// Where a page of the public chatts ends: the next one begins behind it.
struct PageEnd {
  std::int64_t time_us = kNoTime;  ///< since 2000-01-01 UTC
  std::int64_t seq = 0;
};

/// What a look at the table found, without changing anything.
struct TableState {
  std::string reachable;  ///< why the database can't be reached; "" when it can
  std::string obstacle;   ///< why the table can't be used by this role, with the command that helps; ""
  bool up_to_date = false;
};

/// Why the table could not be made usable.
struct SchemaProblem {
  bool can_retry;        ///< the database is away or busy; otherwise somebody has to act
  std::string sentence;  ///< for the operator: what is wrong and, if somebody has to act, the command
};

class Database {
 public:
  /// Of a run's name: a UUID's first three groups, 60 random bits. As many are left to tell its turns apart.
  static constexpr size_t kRunBytes = 18;
  struct Settings {
    std::string conninfo;
    size_t connections_max;
    milliseconds call_timeout;
    size_t history_bytes_max;  ///< what a conversation's rows may take of memory: up to twice their text, with short ones more
  };

  explicit Database(Settings settings);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // Any thread, concurrently:

  // Turns of one conversation, of whichever chatterd, do not interleave. A turn is a row in chatterd_turns
  // (schema.sql) that is written by the transactions that store its messages, so it costs no further round
  // trip, and holds no connection between them. It is held for 15 s at a time, and renewed by keep_turns():
  //  - When chatterd is killed, its conversations stay blocked for that long at most; when its state folder
  //    shows that it is gone (spool.hpp), until end_turns_of() was called.
  //  - When chatterd or the database is frozen or away for longer, another chatterd may begin a turn amid a
  //    running one. That one does not know the reply that is still to come, but the order stays right: each
  //    reply is stored behind its own prompt, or not at all if the conversation was replaced meanwhile.
  //  - Who waits for a turn asks (may_begin) and so is the next to have it: a chatterd with many requests
  //    for a conversation does not keep it to itself. More than this is not promised of the order.
  // Other programs that insert into chatts know nothing of turns and are not held up.

  // append(), store_reply(), end_turn() and post() may share a transaction with what other threads change at the
  // same time. One that fails there for a reason that may be another's is run again by itself. For transactions that
  // are held up, by a lock say, others wait a tenth of a second only, while there are connections.

  /// Begins a turn, stores `messages` at the end of its conversation and reads all of it back, in one
  /// transaction and one round trip (contract 3.2). Not repeated when the outcome is unknown. DbFault::busy:
  /// it is not its turn. DbFault::too_long: the messages are taken away again. After a success the turn lasts until
  /// store_reply() succeeds or end_turn().
  Result<Conversation, DbFailure> append(const Turn& turn, const std::vector<ChatMessage>& messages);
  /// Puts `messages` in the place of a conversation's rows, in a turn that ends with it: all or nothing.
  std::optional<DbFailure> replace(const Turn& turn, const std::vector<ChatMessage>& messages);
  /// Stores a reply and ends its turn. Safe to repeat with the same Reply after a failure: it is stored
  /// once. A reply whose prompt is gone is dropped.
  std::optional<DbFailure> store_reply(const Reply& reply);
  /// Ends a turn that has no reply; if the database is away, as soon as it is back. Nothing to do, no call
  /// to the database: for a turn that has ended, or never began.
  void end_turn(const Turn& turn);
  /// After DbFault::busy: whether trying again may succeed now. As long as it is asked at least every half
  /// second, the turn is the next one in its conversation, unless another was before it.
  Result<bool, DbFailure> may_begin(const Turn& turn);
  /// The turn is no longer waited for: whoever comes then is the next one. If the database is away, a second later.
  void give_up(const Turn& turn);
  /// A turn's id and that of its reply: a UUID that begins with run().
  std::string new_turn_id() const;
  /// What the ids of all turns of this run of chatterd begin with, and those of no other.
  const std::string& run() const { return run_; }
  /// Ends the turns of a run that is over.
  std::optional<DbFailure> end_turns_of(const std::string& run);
  /// Renews the turns under way; call it about once a second, from one thread.
  void keep_turns();

  /// Stores a public chatt.
  std::optional<DbFailure> post(const PostRequest& chatt);
  /// Up to `rows_max` public chatts behind `from`, oldest first; columns as in PublicColumn, the id as
  /// its 16 bytes. A name or message of more than 2 KB is left out (NULL) and kPublicLarge set, so that a
  /// page's size has a limit; public_large() has both then, or no row if it is gone.
  enum PublicColumn { kPublicName, kPublicMessage, kPublicId, kPublicTime, kPublicSeq, kPublicLarge };
  Result<Rows, DbFailure> public_page(const PageEnd& from, size_t rows_max);
  Result<Rows, DbFailure> public_large(std::int64_t seq);

  /// Makes the table or brings it up to date, unless it is. May take minutes for a large old table.
  /// Until this has succeeded once, the calls above fail as unavailable.
  std::optional<SchemaProblem> prepare_schema();
  /// For --check.
  TableState look();
  /// What is in use now.
  struct PoolUse {
    size_t in_use, idle, most;
    size_t waiting;  ///< callers that wait for a connection
  };
  PoolUse pool_use();
  /// Whether the database answers: over a connection that is idle or else a new one, so that it does not
  /// wait while the pool is in use. Nothing: it does; else why not. Also notes that, for the log.
  std::optional<std::string> probe(Deadline deadline);
  /// Whether it could not be used when it was last asked, or its table has not been made usable yet.
  bool away();
  /// Closes connections that nobody has needed for a while; call it about once a second.
  void close_idle();
  /// For calls from now on.
  void set_call_timeout(milliseconds timeout) { call_timeout_ = timeout; }
  void set_history_max(size_t bytes) { history_bytes_max_ = bytes; }

 private:
  using Connection = db_internal::Connection;
  using Opened = Result<std::unique_ptr<Connection>, DbFailure>;
  struct Idle {
    std::unique_ptr<Connection> connection;
    Clock::time_point since;
  };

  struct Held {
    std::string app_id;
    Clock::time_point renewed;
    bool over;  // only its row remains to be written
  };
  struct DueTurn {
    Turn turn;
    bool over;
  };
  struct Change;
  using Results = Result<std::vector<Rows>, DbFailure>;

  Opened borrow(Deadline deadline);
  void give_back(std::unique_ptr<Connection> connection);
  void note_availability(const DbFailure* failure);
  Deadline call_deadline() const { return Deadline::after(call_timeout_.load()); }
  void hold(const Turn& turn, bool over);
  DbFailure take_back(const Turn& turn, const std::string& ids);
  std::vector<DueTurn> due_turns(Clock::time_point now);
  std::optional<DbFailure> insert_reply(const Reply& reply);
  Results run(const std::vector<db_internal::Execution>& executions, Deadline deadline);
  Results try_run(const std::vector<db_internal::Execution>& executions, Deadline deadline);
  Results run_together(const std::vector<db_internal::Execution>& executions);
  bool join_batch(Change& self);
  bool batch_may_begin() const;
  bool batch_is_due() const;
  void lead(Change& change);
  void pass_on(const Change& leader);
  std::vector<Change*> next_batch(Change* leader);
  Results run_batch(const std::vector<Change*>& batch);
  static void share(Results results, const std::vector<Change*>& batch);

  const Settings settings_;
  std::atomic<milliseconds> call_timeout_;  // the settings' one, until it is changed
  std::atomic<size_t> history_bytes_max_;   // likewise
  const std::unique_ptr<db_internal::Servers> servers_;
  std::mutex mutex_;
  std::condition_variable returned_;
  // Guarded by mutex_:
  std::vector<Idle> idle_;   // the last one used is at the back, and is used next
  size_t open_ = 0;          // idle and borrowed together
  bool schema_ready_ = false;
  size_t borrowers_ = 0;     // that wait for a connection
  bool away_ = false;        // what the log said last
  Clock::time_point away_since_;

  const std::string run_;
  std::mutex turns_mutex_;
  std::unordered_map<std::string, Held> turns_;  // guarded by turns_mutex_: under way, by id
  Clock::time_point forget_at_{};                // keep_turns() alone

  std::mutex changes_mutex_;
  // Guarded by changes_mutex_:
  std::deque<Change*> changes_;   // wait for a batch
  std::vector<Change*> leaders_;  // of the batches under way
};

/// What is wrong with a connection string, for the operator; nothing when libpq can read it.
std::optional<std::string> conninfo_problem(const std::string& conninfo);

/// Which database a connection string leads to, for telling one from another: hosts, port and name.
std::string database_name(const std::string& conninfo);

/// The default of --db: the contract's, less what libpq's own variables say.
std::string default_conninfo();
/// schema.sql.
std::string_view schema_sql();
