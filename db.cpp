#include "db.hpp"

#include <endian.h>

#include <cstdlib>
#include <cstring>

#include "db_connection.hpp"
#include "log.hpp"
#include "text.hpp"

using db_internal::Connection;
using db_internal::Execution;
using db_internal::Statement;

namespace {

// A connection that has been idle this long is closed, down to one: a burst leaves nothing behind.
constexpr auto kIdleMax = std::chrono::seconds(5);
constexpr size_t kIdleKept = 1;
// Serialization failures and lost prepared statements: the same again usually succeeds at once.
constexpr int kTriesMax = 3;

enum StatementIndex { kInsert, kHistory, kDelete, kInsertReply, kFindReply, kAppendReply, kInsertPublic, kSelectPublic, kStatements };

const Statement kPrepared[kStatements] = {
    {"insert", "INSERT INTO chatts (name, message, id, appid) VALUES ($1, $2, $3, $4) RETURNING seq"},
    {"history", "SELECT name, message FROM chatts WHERE appid = $1 ORDER BY seq"},
    {"delete", "DELETE FROM chatts WHERE appid = $1"},
    {"insert_reply",
     "INSERT INTO chatts (name, message, id, appid, seq) VALUES ('assistant', $1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING seq"},
    {"find_reply", "SELECT 1 FROM chatts WHERE appid = $1 AND seq = $2 AND id = $3"},
    {"append_reply",
     "INSERT INTO chatts (name, message, id, appid) SELECT 'assistant', $1::text, $2::uuid, $3::varchar"
     " WHERE NOT EXISTS (SELECT FROM chatts WHERE appid = $3::varchar AND id = $2::uuid)"},
    {"insert_public", "INSERT INTO chatts (name, message, id) VALUES ($1, $2, $3)"},
    {"select_public",
     "SELECT name, message, id::text, time, seq FROM chatts WHERE appid IS NULL"
     " AND (coalesce(time, '-infinity'), seq) > ($1::timestamptz, $2::bigint)"
     " ORDER BY coalesce(time, '-infinity'), seq LIMIT $3::bigint"},
};

const Statement* statement(StatementIndex index) { return &kPrepared[index]; }

// One insert for each message; `ids` keeps the UUIDs alive while the executions point at them.
void add_inserts(std::vector<Execution>& executions, std::vector<std::string>& ids, const std::string& app_id,
                 const std::vector<ChatMessage>& messages) {
  ids.reserve(messages.size());
  for (const ChatMessage& message : messages) {
    ids.push_back(make_uuid());
    executions.push_back({statement(kInsert), {message.role.c_str(), message.content.c_str(), ids.back().c_str(), app_id.c_str()}});
  }
}

}  // namespace

Rows::Rows(pg_result* owned) : result_(owned) {}
void Rows::Deleter::operator()(pg_result* result) const { PQclear(result); }
size_t Rows::size() const { return static_cast<size_t>(PQntuples(result_.get())); }
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
  const auto free_options = [](PQconninfoOption* options) { PQconninfoFree(options); };
  using Options = std::unique_ptr<PQconninfoOption, decltype(free_options)>;
  const Options given(PQconninfoParse(conninfo.c_str(), nullptr), free_options);
  const Options defaults(PQconndefaults(), free_options);
  const auto value_in = [](const PQconninfoOption* option, const char* keyword) -> std::string {
    for (; option != nullptr && option->keyword != nullptr; ++option) {
      if (std::strcmp(option->keyword, keyword) == 0 && option->val != nullptr) return option->val;
    }
    return "";
  };
  std::string name;
  for (const char* keyword : {"service", "host", "hostaddr", "port", "dbname"}) {
    std::string value = value_in(given.get(), keyword);
    if (value.empty()) value = value_in(defaults.get(), keyword);
    name += std::string(keyword) + "=" + value + " ";
  }
  return name;
}

Database::Database(Settings settings) : settings_(std::move(settings)) {}
Database::~Database() = default;

Result<Conversation, DbFailure> Database::append(const std::string& app_id, const std::vector<ChatMessage>& messages) {
  std::vector<Execution> executions;
  std::vector<std::string> ids;
  add_inserts(executions, ids, app_id, messages);
  executions.push_back({statement(kHistory), {app_id.c_str()}});
  auto results = run(executions);
  if (!results.ok()) return results.error();
  std::vector<Rows>& rows = results.value();
  Conversation conversation{std::move(rows.back()), messages.size(), std::nullopt};
  // The order counts in twos: the number behind the last prompt's belongs to the reply (schema.sql).
  if (!messages.empty()) conversation.reply_place = rows[messages.size() - 1].integer(0, 0) + 1;
  return conversation;
}

std::optional<DbFailure> Database::replace(const std::string& app_id, const std::vector<ChatMessage>& messages) {
  std::vector<Execution> executions{{statement(kDelete), {app_id.c_str()}}};
  std::vector<std::string> ids;
  add_inserts(executions, ids, app_id, messages);
  return run_change(executions);
}

std::optional<DbFailure> Database::store_reply(const Reply& reply) {
  if (reply.place) {
    const std::string place = std::to_string(*reply.place);
    auto inserted = run({{statement(kInsertReply), {reply.text.c_str(), reply.id.c_str(), reply.app_id.c_str(), place.c_str()}}});
    if (!inserted.ok()) return inserted.error();
    if (inserted.value()[0].size() == 1) return std::nullopt;
    // The place is taken: by this reply, stored by a call whose outcome was unknown, or by another.
    auto found = run({{statement(kFindReply), {reply.app_id.c_str(), place.c_str(), reply.id.c_str()}}});
    if (!found.ok()) return found.error();
    if (found.value()[0].size() == 1) return std::nullopt;
  }
  return run_change({{statement(kAppendReply), {reply.text.c_str(), reply.id.c_str(), reply.app_id.c_str()}}});
}

std::optional<DbFailure> Database::post(const PostRequest& chatt) {
  const std::string id = make_uuid();
  return run_change({{statement(kInsertPublic), {chatt.name.c_str(), chatt.message.c_str(), id.c_str()}}});
}

Result<Rows, DbFailure> Database::public_page(const PageEnd& from, size_t rows_max) {
  const std::string time = format_timestamp(from.time_us);
  const std::string seq = std::to_string(from.seq);
  const std::string limit = std::to_string(rows_max);
  auto results = run({{statement(kSelectPublic), {time.c_str(), seq.c_str(), limit.c_str()}}});
  if (!results.ok()) return results.error();
  return std::move(results.value()[0]);
}

Result<std::vector<Rows>, DbFailure> Database::run(const std::vector<Execution>& executions) {
  const Deadline deadline = Deadline::after(settings_.call_timeout);
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

std::optional<DbFailure> Database::run_change(const std::vector<Execution>& executions) {
  auto results = run(executions);
  if (results.ok()) return std::nullopt;
  return results.error();
}

Database::Opened Database::borrow(Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (!schema_ready_) return DbFailure{DbFault::unavailable, false, "the table is not ready yet"};
  while (true) {
    while (!idle_.empty()) {
      std::unique_ptr<Connection> connection = std::move(idle_.back().connection);
      idle_.pop_back();
      if (connection->still_open()) return connection;
      --open_;
    }
    if (open_ < settings_.connections_max) break;
    if (returned_.wait_until(lock, deadline.at()) == std::cv_status::timeout && idle_.empty() && open_ >= settings_.connections_max) {
      return DbFailure{DbFault::unavailable, false, "no connection was free in time"};
    }
  }
  ++open_;
  lock.unlock();
  auto opened = Connection::open(settings_.conninfo, kPrepared, settings_.call_timeout, deadline);
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
  {
    const std::lock_guard lock(mutex_);
    if (connection->usable()) {
      idle_.push_back({std::move(connection), Clock::now()});
    } else {
      --open_;
    }
  }
  returned_.notify_one();
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

// Says in the log, once each, that the database went and that it came back.
void Database::note_availability(const DbFailure* failure) {
  {
    const std::lock_guard lock(mutex_);
    if (away_ == (failure != nullptr)) return;
    away_ = failure != nullptr;
  }
  if (failure != nullptr) {
    LogLine(LogLevel::warning, "database_away").add("reason", failure->detail);
  } else {
    LogLine(LogLevel::info, "database_back");
  }
}
