// What the database's state is: for the log, the metrics and /readyz.
#include "db.hpp"
#include "db_servers.hpp"
#include "log.hpp"
#include "metrics.hpp"

using db_internal::Connection;

Database::PoolUse Database::pool_use() {
  const std::lock_guard lock(mutex_);
  return {open_ - idle_.size(), idle_.size(), settings_.connections_max, borrowers_};
}

bool Database::away() {
  const std::lock_guard lock(mutex_);
  return away_ || !schema_ready_;
}

std::optional<std::string> Database::probe(Deadline deadline) {
  std::unique_ptr<Connection> connection;
  {
    const std::lock_guard lock(mutex_);
    if (!schema_ready_) return "the table is not ready yet";
    if (!idle_.empty()) {
      connection = std::move(idle_.back().connection);
      idle_.pop_back();
    }
  }
  if (connection) {
    const auto results = connection->run({}, deadline);
    give_back(std::move(connection));
    if (results.ok()) {
      note_availability(nullptr);
      return std::nullopt;
    }
    // It may have died while it was idle: a new one tells.
  }
  const auto opened = servers_->connect({}, call_timeout_, deadline);
  note_availability(opened.ok() ? nullptr : &opened.error());
  return opened.ok() ? std::nullopt : std::optional(opened.error().detail);
}

// Says in the log, once each, that the database went and that it came back.
void Database::note_availability(const DbFailure* failure) {
  const bool away = failure != nullptr;
  metrics::database_up.set(away ? 0 : 1);
  double away_seconds = 0;
  {
    const std::lock_guard lock(mutex_);
    if (away_ == away) return;
    away_ = away;
    if (away) away_since_ = Clock::now();
    away_seconds = std::chrono::duration<double>(Clock::now() - away_since_).count();
  }
  if (away) {
    LogLine(LogLevel::warning, "database_away").add("reason", failure->detail);
  } else {
    LogLine(LogLevel::info, "database_back").add("away_s", away_seconds);
  }
}
