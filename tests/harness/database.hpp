// Databases of the tests, in the private cluster that CHATTERD_TEST_DB names (a superuser's connection
// string), each with a name of its own and dropped when its owner goes.
#pragma once

#include <libpq-fe.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace harness {

using Row = std::vector<std::string>;  // null is shown as "<null>"

// A superuser's connection. One thread at a time. Failing SQL throws std::runtime_error with the message.
class SqlConnection {
 public:
  explicit SqlConnection(const std::string& conninfo);
  std::vector<Row> run(const std::string& sql, const std::vector<std::string>& parameters = {});

 private:
  struct Finish {
    void operator()(PGconn* connection) const { PQfinish(connection); }
  };
  std::unique_ptr<PGconn, Finish> connection_;
};

class Database {
 public:
  Database();   // empty, owned by an ordinary role that may log in
  ~Database();  // dropped, connections to it are ended
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] static std::string owner();
  // As the owner, or as `role`; through another port of 127.0.0.1 where one is given (a TcpProxy's).
  [[nodiscard]] std::string conninfo(int port = 0, const std::string& role = owner()) const;
  // As a superuser.
  std::vector<Row> run(const std::string& sql, const std::vector<std::string>& parameters = {});
  std::string value(const std::string& sql, const std::vector<std::string>& parameters = {});
  // A connection of its own as a superuser, for a second thread.
  [[nodiscard]] SqlConnection connect() const;
  // name and message of a conversation's rows, in their order.
  std::vector<Row> conversation(const std::string& app_id);
  // Waits until the conversation has this many rows; returns what it has in the end.
  std::vector<Row> wait_for_rows(const std::string& app_id, size_t count);

  // The cluster's own address, for a proxy to connect to.
  [[nodiscard]] static std::string server_address();
  [[nodiscard]] static int server_port();

 private:
  std::string name_;
  std::unique_ptr<SqlConnection> admin_;
};

// A role that may log in, with no other rights, dropped when its owner goes. Declare it before the Database
// in which it gets rights: what it was granted there must be gone first.
class Role {
 public:
  Role();
  ~Role();
  Role(const Role&) = delete;
  Role& operator=(const Role&) = delete;
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  std::string name_;
};

}  // namespace harness
