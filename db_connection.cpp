#include "db_connection.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "log.hpp"
#include "text.hpp"

namespace db_internal {
namespace {

std::string_view first_line(const char* text) {
  const std::string_view all = text == nullptr ? "" : text;
  return all.substr(0, all.find('\n'));
}

// The last statement of every transaction: fails, and with it the whole, once the deadline is over by the
// server's clock. So what was given up is never done later, behind what has come after it.
constexpr Statement kInTime = {"in_time", "SELECT 1 / (extract(epoch FROM clock_timestamp() - '2000-01-01Z') * 1000000 < $1::bigint)::int"};
constexpr std::string_view kTooLate = "22012";  // division by zero
constexpr const char* kServerTime = "SELECT (extract(epoch FROM clock_timestamp() - '2000-01-01Z') * 1000000)::bigint";

// The one place that decides what an SQLSTATE means (PostgreSQL's documentation, appendix A).
DbFault fault_of(std::string_view sqlstate) {
  // Nothing was done, and if there is time left a new connection will know the server's clock better.
  if (sqlstate == kTooLate) return DbFault::retry;
  if (sqlstate.starts_with("22") || sqlstate.starts_with("23")) return DbFault::refused;
  // 57P01: an idle session was ended just when it was wanted again.
  if (sqlstate == "40001" || sqlstate == "40P01" || sqlstate == "26000" || sqlstate == "0A000" || sqlstate == "57P01") return DbFault::retry;
  // Without an SQLSTATE the failure is libpq's own: the connection. 25006: a standby after a fail-over.
  // 53 is a lack of resources such as a full disk; 55P03 a lock that was not had in time.
  if (sqlstate.empty() || sqlstate.starts_with("08") || sqlstate.starts_with("53") || sqlstate.starts_with("57") ||
      sqlstate == "25006" || sqlstate == "55P03") {
    return DbFault::unavailable;
  }
  return DbFault::failed;
}

// Whether an error leaves the connection of no further use: the session is ending, is on a server that
// can't write, or has lost its prepared statements.
bool poisons_connection(std::string_view sqlstate) {
  return sqlstate.empty() || sqlstate.starts_with("08") || sqlstate.starts_with("57P") || sqlstate == "25006" ||
         sqlstate == "26000" || sqlstate == "0A000" || sqlstate == kTooLate;  // the server's clock may have been set
}

// A session does not lose what it has prepared. A pooler that gives each transaction any session does.
void tell_of_a_pooler() {
  static std::atomic<bool> told{false};
  if (told.exchange(true)) return;
  LogLine(LogLevel::error, "database_pooler")
      .add("reason", "the database's sessions lose what was prepared in them, so a pooler such as PgBouncer in transaction mode must be "
                     "in between; set its pool_mode = session (or, from PgBouncer 1.21 on, max_prepared_statements = 200)");
}

// The constraint of schema.sql by which a turn that comes too early fails.
bool is_turn_refused(const PGresult* result) {
  const char* constraint = PQresultErrorField(result, PG_DIAG_CONSTRAINT_NAME);
  return constraint != nullptr && std::string_view(constraint) == "one_turn_at_a_time";
}

}  // namespace

// A mark of the connection's own: behind a pooler that mixes sessions up, and runs one with statements of
// another chatterd's, a name must be unknown rather than mean something else.
Connection::Connection(PgConn pg, milliseconds statement_timeout)
    : pg_(std::move(pg)), statement_timeout_(statement_timeout), mark_("_" + make_uuid()) {}

Result<std::unique_ptr<Connection>, DbFailure> Connection::open(const Address& address, std::span<const Statement> statements,
                                                                milliseconds statement_timeout, Deadline deadline) {
  // Of two equal keywords the later one counts, and an empty value does not count.
  const char* keywords[] = {"target_session_attrs", "dbname", "host", "hostaddr", "port", "fallback_application_name", "client_encoding", nullptr};
  const char* values[] = {address.one_of_several ? "read-write" : "", address.conninfo.c_str(), address.host.c_str(), address.hostaddr.c_str(),
                          address.port.c_str(), "chatterd", "UTF8", nullptr};
  std::unique_ptr<Connection> connection(new Connection(PgConn(PQconnectStartParams(keywords, values, /*expand_dbname=*/1)), statement_timeout));
  if (auto failure = connection->connect(deadline)) return *failure;
  if (auto failure = connection->prepare(statements, deadline)) return *failure;
  return connection;
}

std::optional<DbFailure> Connection::connect(Deadline deadline) {
  // Notices, also those of a server that ends while we connect, would go to standard error as they are.
  if (pg_) PQsetNoticeProcessor(pg_.get(), [](void*, const char*) {}, nullptr);
  PostgresPollingStatusType state = PGRES_POLLING_WRITING;
  while (pg_ && PQstatus(pg_.get()) != CONNECTION_BAD && state != PGRES_POLLING_OK && state != PGRES_POLLING_FAILED) {
    if (!wait(state == PGRES_POLLING_READING ? POLLIN : POLLOUT, deadline)) {
      return DbFailure{DbFault::unavailable, false, "no connection in time to " + host() + " port " + port()};
    }
    state = PQconnectPoll(pg_.get());
  }
  if (state != PGRES_POLLING_OK) {
    return DbFailure{DbFault::unavailable, false, std::string(first_line(PQerrorMessage(pg_.get())))};
  }
  PQsetnonblocking(pg_.get(), 1);
  return std::nullopt;
}

std::optional<DbFailure> Connection::prepare(std::span<const Statement> statements, Deadline deadline) {
  if (statements.empty()) return std::nullopt;
  // The server too gives a statement up once nobody waits for it any more.
  const std::string limit = "SET statement_timeout = " + std::to_string(std::max<long long>(1, statement_timeout_.count()));
  bool sent = PQenterPipelineMode(pg_.get()) == 1 &&
              PQsendQueryParams(pg_.get(), limit.c_str(), 0, nullptr, nullptr, nullptr, nullptr, 0) == 1 &&
              PQsendQueryParams(pg_.get(), kServerTime, 0, nullptr, nullptr, nullptr, nullptr, 0) == 1 &&
              PQsendPrepare(pg_.get(), own_name(kInTime).c_str(), kInTime.sql, 0, nullptr) == 1;
  for (const Statement& statement : statements) {
    sent = sent && PQsendPrepare(pg_.get(), own_name(statement).c_str(), statement.sql, 0, nullptr) == 1;
  }
  if (!sent || PQpipelineSync(pg_.get()) != 1) return lost(false);
  auto results = collect(statements.size() + 3, deadline);
  if (!results.ok()) return results.error();
  // The answer was on its way for a while: a deadline may come early by that, but never late.
  server_time_us_ = std::strtoll(PQgetvalue(results.value()[1].get(), 0, 0), nullptr, 10);
  server_time_at_ = Clock::now();
  return std::nullopt;
}

Result<std::vector<PgResult>, DbFailure> Connection::run(std::span<const Execution> executions, Deadline deadline) {
  for (const Execution& execution : executions) {
    if (PQsendQueryPrepared(pg_.get(), own_name(*execution.statement).c_str(), static_cast<int>(execution.parameters.size()),
                            execution.parameters.data(), nullptr, nullptr, /*resultFormat=*/1) != 1) {
      return lost(false);
    }
  }
  const auto left = std::chrono::duration_cast<std::chrono::microseconds>(deadline.at() - server_time_at_);
  const std::string end = std::to_string(server_time_us_ + left.count());
  const char* const parameter = end.c_str();
  if (PQsendQueryPrepared(pg_.get(), own_name(kInTime).c_str(), 1, &parameter, nullptr, nullptr, /*resultFormat=*/1) != 1) return lost(false);
  // Nothing can have been committed before the sync is sent.
  if (PQpipelineSync(pg_.get()) != 1) return lost(true);
  auto results = collect(executions.size() + 1, deadline);
  if (results.ok()) results.value().pop_back();
  return results;
}

Result<std::vector<PgResult>, DbFailure> Connection::collect(size_t results_expected, Deadline deadline) {
  std::vector<PgResult> results;
  results.reserve(results_expected);
  std::optional<DbFailure> failure;
  while (true) {
    if (auto trouble = exchange_some(deadline)) return *trouble;
    while (PQisBusy(pg_.get()) == 0) {
      PgResult result(PQgetResult(pg_.get()));
      if (!result) {
        // Between two statements' results there is one null; a dead connection gives nulls for ever.
        if (PQstatus(pg_.get()) == CONNECTION_BAD) return lost(true);
        continue;
      }
      switch (PQresultStatus(result.get())) {
        case PGRES_PIPELINE_SYNC:
          if (failure) return *failure;
          if (results.size() != results_expected) return lost(true);
          return results;
        case PGRES_COMMAND_OK:
        case PGRES_TUPLES_OK: results.push_back(std::move(result)); break;
        case PGRES_PIPELINE_ABORTED: break;  // by the failure before it
        default:
          // With all results in, the commit may have been made before the session ended.
          if (results.size() == results_expected) return lost(true);
          if (!failure) failure = failure_of(result.get());
          if (PQstatus(pg_.get()) == CONNECTION_BAD) return failure->outcome_unknown ? lost(true) : *failure;
      }
    }
  }
}

// Sends what is left to send, then waits for something to arrive and reads it.
std::optional<DbFailure> Connection::exchange_some(Deadline deadline) {
  const int unsent = PQflush(pg_.get());
  if (unsent < 0) return lost(true);
  if (!wait(static_cast<short>(unsent > 0 ? POLLIN | POLLOUT : POLLIN), deadline)) {
    usable_ = false;
    return DbFailure{DbFault::unavailable, true, "no answer in time"};
  }
  // After a failure to read, results that came before it can still be had.
  if (PQconsumeInput(pg_.get()) != 1 && PQisBusy(pg_.get()) != 0) return lost(true);
  return std::nullopt;
}

Result<PgResult, DbFailure> Connection::run_script(const std::string& sql, Deadline deadline) {
  if (PQsendQuery(pg_.get(), sql.c_str()) != 1) return lost(false);
  PgResult last;
  while (true) {
    if (PQisBusy(pg_.get()) != 0 || last == nullptr) {
      if (auto trouble = exchange_some(deadline)) return *trouble;
    }
    while (PQisBusy(pg_.get()) == 0) {
      PgResult result(PQgetResult(pg_.get()));
      if (!result) {
        if (last == nullptr || PQstatus(pg_.get()) == CONNECTION_BAD) return lost(true);
        if (PQresultStatus(last.get()) == PGRES_FATAL_ERROR) return failure_of(last.get());
        return last;
      }
      // The first failure stands; what follows it is only its echo.
      if (last == nullptr || PQresultStatus(last.get()) != PGRES_FATAL_ERROR) last = std::move(result);
    }
  }
}

bool Connection::still_open() {
  // Between two calls a server says something only when it ends the session, or is reconfigured.
  return !wait(POLLIN, Deadline::after(milliseconds(0)));
}

DbFailure Connection::lost(bool outcome_unknown) {
  usable_ = false;
  return {DbFault::unavailable, outcome_unknown, std::string(first_line(PQerrorMessage(pg_.get())))};
}

// The server's own message may quote a value, which is somebody's words: its code says enough.
DbFailure Connection::failure_of(const PGresult* result) {
  const char* code = PQresultErrorField(result, PG_DIAG_SQLSTATE);
  const std::string sqlstate = code == nullptr ? "" : code;
  if (sqlstate == "26000") tell_of_a_pooler();
  if (poisons_connection(sqlstate)) usable_ = false;
  if (is_turn_refused(result)) return {DbFault::busy, false, "another turn is under way"};
  return {fault_of(sqlstate), sqlstate.empty(), sqlstate.empty() ? "the connection broke" : "SQLSTATE " + sqlstate};
}

bool Connection::wait(short events, Deadline deadline) const {
  pollfd watched{PQsocket(pg_.get()), events, 0};
  while (true) {
    const int ready = ::poll(&watched, 1, deadline.left_ms());
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

}  // namespace db_internal
