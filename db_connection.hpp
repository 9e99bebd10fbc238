// One connection to PostgreSQL: libpq's handles in RAII, every wait under the caller's deadline.
// Private to the db modules; nothing else includes libpq.
//
// libpq's blocking calls can hang far beyond statement_timeout and tcp_user_timeout when a server
// stops answering, so only its non-blocking ones are used, with a poll() of our own.
#pragma once

#include <libpq-fe.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "db.hpp"
#include "net.hpp"
#include "result.hpp"

namespace db_internal {

struct PgConnDeleter {
  void operator()(PGconn* connection) const { PQfinish(connection); }
};
using PgConn = std::unique_ptr<PGconn, PgConnDeleter>;
struct PgResultDeleter {
  void operator()(PGresult* result) const { PQclear(result); }
};
using PgResult = std::unique_ptr<PGresult, PgResultDeleter>;

/// A statement that every connection prepares when it opens, by this name and its own mark.
struct Statement {
  const char* name;
  const char* sql;
};

/// One execution of a prepared statement. The parameters are text without NUL and must outlive the
/// call; a null pointer is SQL's NULL.
struct Execution {
  const Statement* statement;
  std::vector<const char*> parameters;
};

/// Where to connect: a connection string and, of several servers that it names, one.
struct Address {
  std::string conninfo;
  bool one_of_several;               ///< then one that can't be written to does not do
  std::string host, hostaddr, port;  ///< "": as the connection string has it
};

class Connection {
 public:
  /// Connects, and prepares `statements`.
  static Result<std::unique_ptr<Connection>, DbFailure> open(const Address& address, std::span<const Statement> statements,
                                                             milliseconds statement_timeout, Deadline deadline);

  /// Sends all executions at once and waits for all results, one for each, rows in binary format. They
  /// are one transaction in one round trip: either all happen or, on any failure, none; except that
  /// with DbFailure::outcome_unknown it can't be known. Even then they don't happen after the deadline:
  /// a server that was frozen, or gets them late, refuses them by its own clock.
  Result<std::vector<PgResult>, DbFailure> run(std::span<const Execution> executions, Deadline deadline);

  /// Runs SQL text of several statements as it is, outside a pipeline. Returns the last result.
  Result<PgResult, DbFailure> run_script(const std::string& sql, Deadline deadline);

  /// False once an error has made the connection unusable; then it must be dropped.
  bool usable() const { return usable_; }
  /// Whether an idle connection is still open: notices a server that has closed it.
  bool still_open();
  /// As open() was given it.
  milliseconds statement_timeout() const { return statement_timeout_; }

  std::string host() const { return text(PQhost(pg_.get())); }
  std::string port() const { return text(PQport(pg_.get())); }

 private:
  Connection(PgConn pg, milliseconds statement_timeout);
  static std::string text(const char* value) { return value == nullptr ? "" : value; }
  std::optional<DbFailure> connect(Deadline deadline);
  std::optional<DbFailure> prepare(std::span<const Statement> statements, Deadline deadline);
  Result<std::vector<PgResult>, DbFailure> collect(size_t results_expected, Deadline deadline);
  std::optional<DbFailure> exchange_some(Deadline deadline);
  DbFailure lost(bool outcome_unknown);
  DbFailure failure_of(const PGresult* result);
  bool wait(short events, Deadline deadline) const;
  std::string own_name(const Statement& statement) const { return statement.name + mark_; }

  PgConn pg_;
  const milliseconds statement_timeout_;
  const std::string mark_;
  bool usable_ = true;
  // The server's clock, in microseconds since 2000, and ours when its answer had come.
  std::int64_t server_time_us_ = 0;
  Clock::time_point server_time_at_{};
};

}  // namespace db_internal
