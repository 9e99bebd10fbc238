// The servers of one database that a connection string names, such as a primary and its hot standby
// (docs/scaling.md). Private to the db modules.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "db_connection.hpp"

namespace db_internal {

/// Any thread, concurrently.
///
/// libpq goes to the next host of a list by itself only when one refuses. In its non-blocking calls it
/// ignores connect_timeout, so a host without power would be waited for until the caller's deadline, each
/// time again. Hence each is tried by a call of its own. A list that only a service file names is left to libpq.
class Servers {
 public:
  explicit Servers(const std::string& conninfo);

  /// A connection to the first server that takes one, beginning with the one that did last. Each has its
  /// share of the time until the deadline. Of several, one that can be written to, unless the connection
  /// string says otherwise (target_session_attrs). The failure tells what each said.
  Result<std::unique_ptr<Connection>, DbFailure> connect(std::span<const Statement> statements, milliseconds statement_timeout,
                                                         Deadline deadline);

 private:
  const std::vector<Address> addresses_;
  std::atomic<size_t> first_{0};
};

/// What a connection string says for a keyword, or else libpq's own variables; "" for nothing.
std::string conninfo_value(const std::string& conninfo, const char* keyword);

}  // namespace db_internal
