#include "db.hpp"

#include <endian.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>

#include "db_connection.hpp"
#include "db_servers.hpp"
#include "db_statements.hpp"
#include "log.hpp"
#include "metrics.hpp"
#include "text.hpp"

using namespace db_internal;

namespace {

// A connection that has been idle this long is closed, down to one: a burst leaves nothing behind.
constexpr auto kIdleMax = std::chrono::seconds(5);
constexpr size_t kIdleKept = 1;
// Batches of changes under way at once: while one is being committed the next is sent, if it is worth that. Fewer
// changes cost less in one batch behind the first: a commit, and a server process whose caches are warm.
constexpr size_t kBatchesMax = 2;
constexpr size_t kSecondBatchFrom = 16;              // changes,
constexpr size_t kSecondBatchFromBytes = 64 * 1024;  // or so many bytes: a server process needs 0.5 to 2 ms to store them
// After so long a batch is held up, by a lock or a slow disk: it is in nobody's way any more, and a change that has
// waited so long goes ahead, with those that wait like it. Many times what a commit takes, and little of --db-timeout.
constexpr auto kBatchPatience = milliseconds(100);
// Changes in one batch; beyond that sharing a commit saves little more.
constexpr size_t kBatchChangesMax = 64;
// Bytes of one batch's parameters, if it is not one change alone: libpq keeps a buffer for all of them. Short
// messages have room, and those that are long cost more than their commit.
constexpr size_t kBatchBytesMax = 256 * 1024;
// Serialization failures and lost prepared statements: the same again usually succeeds at once.
constexpr int kTriesMax = 3;

metrics::DatabaseError error_of(DbFault fault) {
  if (fault == DbFault::refused) return metrics::DatabaseError::refused;
  return fault == DbFault::unavailable ? metrics::DatabaseError::unavailable : metrics::DatabaseError::failed;
}

DbFailure pool_was_full() {
  metrics::refused[metrics::Limit::db_pool].add();
  return {DbFault::unavailable, false, "no connection was free in time"};
}

// Too short a text to need memory.
DbFailure out_of_memory() { return {DbFault::unavailable, true, "out of memory"}; }

}  // namespace

Rows::Rows(pg_result* owned) : result_(owned) {}
void Rows::Deleter::operator()(pg_result* result) const { PQclear(result); }
size_t Rows::size() const { return static_cast<size_t>(PQntuples(result_.get())); }
size_t Rows::memory_bytes() const { return PQresultMemorySize(result_.get()); }
bool Rows::is_null(size_t row, int column) const { return PQgetisnull(result_.get(), static_cast<int>(row), column) == 1; }
std::string_view Rows::text(size_t row, int column) const {
  const int at = static_cast<int>(row);
  return {PQgetvalue(result_.get(), at, column), static_cast<size_t>(PQgetlength(result_.get(), at, column))};
}
std::int64_t Rows::integer(size_t row, int column) const {
  std::uint64_t bytes = 0;
  const std::string_view value = text(row, column);
  if (value.size() != sizeof bytes) return 0;
  std::memcpy(&bytes, value.data(), sizeof bytes);
  return static_cast<std::int64_t>(be64toh(bytes));
}

std::string default_conninfo() {
  const auto unset = [](const char* name) { return std::getenv(name) == nullptr; };
  std::string conninfo;
  if (unset("PGSERVICE")) {
    if (unset("PGHOST") && unset("PGHOSTADDR")) conninfo += "host=localhost ";
    if (unset("PGUSER")) conninfo += "user=chatter ";
    if (unset("PGDATABASE")) conninfo += "dbname=chatterdb ";
  }
  return conninfo;
}

std::optional<std::string> conninfo_problem(const std::string& conninfo) {
  char* message = nullptr;
  PQconninfoOption* options = PQconninfoParse(conninfo.c_str(), &message);
  const std::unique_ptr<char, decltype(&PQfreemem)> guard(message, PQfreemem);
  if (options != nullptr) {
    PQconninfoFree(options);
    return std::nullopt;
  }
  std::string problem = message == nullptr ? "it can't be read" : message;
  while (problem.ends_with('\n')) problem.pop_back();
  return problem;
}

std::string database_name(const std::string& conninfo) {
  std::string name;
  for (const char* keyword : {"service", "host", "hostaddr", "port", "dbname"}) {
    name += std::string(keyword) + "=" + db_internal::conninfo_value(conninfo, keyword) + " ";
  }
  return name;
}

Database::Database(Settings settings)
    : settings_(std::move(settings)),
      call_timeout_(settings_.call_timeout),
      history_bytes_max_(settings_.history_bytes_max),
      servers_(std::make_unique<db_internal::Servers>(settings_.conninfo)),
      run_(make_uuid().substr(0, kRunBytes)) {
  leaders_.reserve(std::max(kBatchesMax, settings_.connections_max));
}
Database::~Database() = default;

std::optional<DbFailure> Database::post(const PostRequest& chatt) {
  const std::string id = make_uuid();
  return failure_of(run_together({{statement(kInsertPublic), {chatt.name.c_str(), chatt.message.c_str(), id.c_str()}}}));
}

Result<Rows, DbFailure> Database::public_page(const PageEnd& from, size_t rows_max) {
  const std::string time = format_timestamp(from.time_us);
  const std::string seq = std::to_string(from.seq);
  const std::string limit = std::to_string(rows_max);
  auto results = run({{statement(kSelectPublic), {time.c_str(), seq.c_str(), limit.c_str()}}}, call_deadline());
  if (!results.ok()) return results.error();
  return std::move(results.value()[0]);
}

Result<Rows, DbFailure> Database::public_large(std::int64_t seq) {
  const std::string text = std::to_string(seq);
  auto results = run({{statement(kSelectLarge), {text.c_str()}}}, call_deadline());
  if (!results.ok()) return results.error();
  return std::move(results.value()[0]);
}

Database::Results Database::run(const std::vector<Execution>& executions, Deadline deadline) {
  const auto began = Clock::now();
  auto results = try_run(executions, deadline);
  metrics::database_call.observe(Clock::now() - began);
  if (!results.ok() && results.error().fault != DbFault::busy) metrics::database_errors[error_of(results.error().fault)].add();
  return results;
}

Database::Results Database::try_run(const std::vector<Execution>& executions, Deadline deadline) {
  for (int tries = 1;; ++tries) {
    auto borrowed = borrow(deadline);
    if (!borrowed.ok()) return borrowed.error();
    std::unique_ptr<Connection> connection = std::move(borrowed.value());
    auto results = connection->run(executions, deadline);
    const bool usable = connection->usable();
    give_back(std::move(connection));
    if (results.ok()) {
      note_availability(nullptr);
      std::vector<Rows> rows;
      rows.reserve(results.value().size());
      for (auto& result : results.value()) rows.emplace_back(result.release());
      return rows;
    }
    DbFailure failure = results.error();
    if (failure.fault == DbFault::retry) {
      if (tries < kTriesMax) continue;
      failure.fault = usable ? DbFault::failed : DbFault::unavailable;
    }
    if (failure.fault == DbFault::unavailable) note_availability(&failure);
    return failure;
  }
}

// A change that shares a transaction with others. On its caller's stack.
struct Database::Change {
  enum class State {
    waiting,  // for a batch, or in one that is under way
    leading,  // its caller runs the next batch
    alone,    // the batch failed for a reason that may be another change's: to be run by itself
    done,
  };

  Change(const std::vector<Execution>& what, Deadline until) : executions(what), deadline(until), bytes(bytes_of(what)) {}

  bool wait(Deadline until) {
    std::unique_lock lock(mutex);
    return moved_on.wait_until(lock, until.at(), [this] { return state != State::waiting; });
  }
  void move_on(State to) {
    const std::lock_guard lock(mutex);
    state = to;
    moved_on.notify_one();
  }
  static size_t bytes_of(const std::vector<Execution>& executions) {
    size_t sum = 0;
    for (const Execution& execution : executions) {
      for (const char* parameter : execution.parameters) sum += parameter == nullptr ? 0 : std::strlen(parameter);
    }
    return sum;
  }
  // Whose row in chatterd_turns it locks: each statement that locks one begins with the conversation.
  std::string_view conversation() const { return executions.front().parameters.front(); }

  const std::vector<Execution>& executions;
  const Deadline deadline;
  const size_t bytes;  // of its parameters
  Results results = std::vector<Rows>{};
  Clock::time_point led_since;  // guarded by changes_mutex_
  // A mutex of its own: all of a batch are woken at once, and would stand in line at a shared one.
  std::mutex mutex;
  std::condition_variable moved_on;
  State state = State::waiting;  // guarded by mutex
};

// Runs a change in one transaction with those of other callers that come while earlier ones are under way: a
// commit, the server's dearest step, for all of them, and a round trip. Alone, it is run at once.
Database::Results Database::run_together(const std::vector<Execution>& executions) {
  using State = Change::State;
  Change self(executions, call_deadline());
  if (!join_batch(self)) return pool_was_full();
  if (self.state == State::leading) {
    struct Leading {
      Database& database;
      const Change& leader;
      ~Leading() { database.pass_on(leader); }
    } const leading{*this, self};
    const std::vector<Change*> batch = next_batch(&self);
    share(run_batch(batch), batch);
  }
  if (self.state == State::alone) return run(executions, self.deadline);
  return std::move(self.results);
}

// Returns when the change is to lead a batch or another's has ended with it. False: it is in none, and its time is over.
bool Database::join_batch(Change& self) {
  {
    const std::lock_guard lock(changes_mutex_);
    changes_.push_back(&self);
    if (batch_is_due()) {
      changes_.pop_back();
      lead(self);
      return true;
    }
  }
  while (!self.wait(Deadline::earlier(self.deadline, Deadline::after(kBatchPatience)))) {
    std::unique_lock lock(changes_mutex_);
    const bool too_late = self.deadline.passed();
    if (!too_late && !batch_may_begin()) continue;
    if (std::erase(changes_, &self) == 0) {
      lock.unlock();
      self.wait(Deadline::never());  // it is under way, and ends by a deadline that is not later
      return true;
    }
    if (too_late) return false;
    lead(self);
  }
  return true;
}

// One connection stays for what is no change.
bool Database::batch_may_begin() const {
  return leaders_.size() < kBatchesMax || leaders_.size() + 1 < settings_.connections_max;
}

// Whether one is to begin at once for the changes that wait.
bool Database::batch_is_due() const {
  if (changes_.empty() || !batch_may_begin()) return false;
  const auto at_work = std::count_if(leaders_.begin(), leaders_.end(), [now = Clock::now()](const Change* leader) {
    return now - leader->led_since < kBatchPatience;
  });
  if (at_work == 0) return true;
  if (static_cast<size_t>(at_work) >= kBatchesMax) return false;
  if (changes_.size() >= kSecondBatchFrom) return true;
  size_t bytes = 0;
  for (const Change* change : changes_) bytes += change->bytes;
  return bytes >= kSecondBatchFromBytes;
}

void Database::lead(Change& change) {
  change.led_since = Clock::now();
  leaders_.push_back(&change);  // there is room (constructor): nobody would pass on what a failure leaves behind
  change.move_on(Change::State::leading);
}

void Database::pass_on(const Change& leader) {
  const std::lock_guard lock(changes_mutex_);
  std::erase(leaders_, &leader);
  if (!batch_is_due()) return;
  Change& next = *changes_.front();
  changes_.pop_front();
  lead(next);
}

std::vector<Database::Change*> Database::next_batch(Change* leader) {
  std::vector<Change*> batch;
  batch.reserve(kBatchChangesMax);  // once it has changes of others, nothing may fail
  batch.push_back(leader);
  const std::lock_guard lock(changes_mutex_);
  // A batch has the deadline of its first: one that has waited long must not hurry those that came later.
  if (changes_.empty() || leader->deadline.at() < Clock::now() + call_timeout_.load() / 2) return batch;
  size_t bytes = leader->bytes;
  while (!changes_.empty() && batch.size() < kBatchChangesMax) {
    bytes += changes_.front()->bytes;
    if (bytes > kBatchBytesMax) break;
    batch.push_back(changes_.front());
    changes_.pop_front();
  }
  // All transactions lock turns in one order, those of other chatterds too: so they don't wait for each other in
  // a circle.
  std::sort(batch.begin(), batch.end(), [](const Change* a, const Change* b) { return a->conversation() < b->conversation(); });
  return batch;
}

Database::Results Database::run_batch(const std::vector<Change*>& batch) {
  // The others wait for an answer, whatever happens here.
  try {
    std::vector<Execution> executions;
    Deadline deadline = Deadline::never();
    for (const Change* change : batch) {
      executions.insert(executions.end(), change->executions.begin(), change->executions.end());
      deadline = Deadline::earlier(deadline, change->deadline);
    }
    return run(executions, deadline);
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
}

// Gives each change of a batch its part of the results, or what its failure means to it.
void Database::share(Results results, const std::vector<Change*>& batch) {
  // The database did nothing, and was there to say so: some change's own fault, or its luck.
  const bool told = !results.ok() && results.error().fault != DbFault::unavailable && batch.size() > 1;
  auto rest = results.ok() ? results.value().begin() : std::vector<Rows>::iterator{};
  for (Change* change : batch) {
    const auto begin = rest;
    if (results.ok()) rest += static_cast<std::ptrdiff_t>(change->executions.size());
    try {
      if (results.ok()) {
        change->results = std::vector<Rows>(std::make_move_iterator(begin), std::make_move_iterator(rest));
      } else {
        change->results = results.error();
      }
    } catch (const std::bad_alloc&) {
      change->results = out_of_memory();
    }
    change->move_on(told ? Change::State::alone : Change::State::done);
  }
}

Database::Opened Database::borrow(Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (!schema_ready_) return DbFailure{DbFault::unavailable, false, "the table is not ready yet"};
  while (true) {
    while (!idle_.empty()) {
      std::unique_ptr<Connection> connection = std::move(idle_.back().connection);
      idle_.pop_back();
      if (connection->statement_timeout() == call_timeout_.load() && connection->still_open()) return connection;
      --open_;
    }
    if (open_ < settings_.connections_max) break;
    ++borrowers_;
    const bool in_time = returned_.wait_until(lock, deadline.at()) == std::cv_status::no_timeout;
    --borrowers_;
    if (!in_time && idle_.empty() && open_ >= settings_.connections_max) return pool_was_full();
  }
  ++open_;
  lock.unlock();
  auto opened = servers_->connect(prepared_statements(), call_timeout_, deadline);
  if (!opened.ok()) {
    lock.lock();
    --open_;
    lock.unlock();
    returned_.notify_one();
    if (opened.error().fault == DbFault::unavailable) note_availability(&opened.error());
  }
  return opened;
}

void Database::give_back(std::unique_ptr<Connection> connection) {
  std::vector<Idle> closing;  // closed after the lock is gone
  {
    const std::lock_guard lock(mutex_);
    if (connection->usable()) {
      idle_.push_back({std::move(connection), Clock::now()});
    } else {
      --open_;
      // What has broken this one has likely broken the idle ones too, and on a host that has lost its power
      // each would cost a caller all of its time.
      closing.swap(idle_);
      open_ -= closing.size();
    }
  }
  if (closing.empty()) returned_.notify_one();
  else returned_.notify_all();
}

void Database::close_idle() {
  std::vector<Idle> closing;  // closed after the lock is gone
  const std::lock_guard lock(mutex_);
  const auto limit = Clock::now() - kIdleMax;
  while (!idle_.empty() && open_ > kIdleKept && idle_.front().since < limit) {
    closing.push_back(std::move(idle_.front()));
    idle_.erase(idle_.begin());
    --open_;
  }
}
