// A PostgreSQL of a case's own, for cases that stop it, crash it or fill its disk.
//
// It runs as the user "postgres" when the tests run as root, which the server itself refuses to be. It
// listens on 127.0.0.1 only and asks its superuser for a random password. It ends with its owner, and
// when the test program dies. One thread: the one that makes it, which must outlive it.
#pragma once

#include <memory>
#include <string>

#include "tests/harness/database.hpp"
#include "tests/harness/process.hpp"

namespace faults {

// A folder that the server's user can reach and write, removed with its owner.
class ServerFolder {
 public:
  ServerFolder();
  ~ServerFolder();
  ServerFolder(const ServerFolder&) = delete;
  ServerFolder& operator=(const ServerFolder&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }
  // Makes a folder in it and gives it to the server's user.
  std::string make(const std::string& name) const;

 private:
  std::string path_;
};

class Cluster {
 public:
  Cluster();   // running, with an ordinary role "chatter" and its database "chatterdb"
  explicit Cluster(Cluster& primary);  // its hot standby, which follows it
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  void stop_immediately();  // what `pg_ctl stop -m immediate` does
  void start();             // returns when it takes connections
  void wait_for_standby_only();  // from now on a commit is one once the standby has it too
  void promote();                // a standby becomes a primary
  [[nodiscard]] bool is_running();

  // As the ordinary role; through another port of 127.0.0.1 where one is given.
  [[nodiscard]] std::string conninfo(int port = 0) const;
  [[nodiscard]] std::string admin_conninfo(const std::string& database = "chatterdb") const;
  [[nodiscard]] int port() const { return port_; }
  [[nodiscard]] const ServerFolder& folder() const { return folder_; }

 private:
  [[nodiscard]] harness::Arguments as_server_user(const harness::Arguments& command) const;
  ServerFolder folder_;
  std::string password_;
  int port_ = 0;
  std::unique_ptr<harness::Process> server_;
};

// Runs a program to its end; throws with its output when it fails.
void run_program(const harness::Arguments& command);

}  // namespace faults
