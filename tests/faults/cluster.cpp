#include "tests/faults/cluster.hpp"

#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>

namespace faults {
namespace {

using harness::Arguments;

constexpr int kStartMs = 60000;

// Debian keeps the server's programs out of PATH; the newest version is used.
const std::string& server_programs() {
  static const std::string found = [] {
    std::string newest;
    int newest_version = 0;
    std::error_code missing;
    for (const auto& entry : std::filesystem::directory_iterator("/usr/lib/postgresql", missing)) {
      const int version = std::atoi(entry.path().filename().c_str());
      if (version > newest_version && std::filesystem::exists(entry.path() / "bin" / "initdb")) {
        newest = (entry.path() / "bin").string();
        newest_version = version;
      }
    }
    if (newest.empty()) throw std::runtime_error("no PostgreSQL server in /usr/lib/postgresql");
    return newest;
  }();
  return found;
}

const passwd* server_user() {
  if (::geteuid() != 0) return nullptr;
  const passwd* user = ::getpwnam("postgres");
  if (user == nullptr) throw std::runtime_error("there is no user postgres on this machine");
  return user;
}

std::string random_hex() {
  std::random_device random;
  std::string text;
  for (int i = 0; i < 32; ++i) text += "0123456789abcdef"[random() % 16];
  return text;
}

}  // namespace

ServerFolder::ServerFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "chatterd_cluster_XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
  path_ = pattern;
  if (const passwd* user = server_user()) {
    if (::chown(path_.c_str(), user->pw_uid, user->pw_gid) != 0) throw std::runtime_error("chown " + path_);
  }
}

ServerFolder::~ServerFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string ServerFolder::make(const std::string& name) const {
  const std::string path = path_ + "/" + name;
  std::filesystem::create_directory(path);
  const passwd* user = server_user();
  if (user != nullptr && ::chown(path.c_str(), user->pw_uid, user->pw_gid) != 0) throw std::runtime_error("chown " + path);
  return path;
}

void run_program(const Arguments& command) {
  harness::Process process(command.front(), Arguments(command.begin() + 1, command.end()));
  const auto status = process.wait_exit(kStartMs);
  if (status != 0) throw std::runtime_error(command.front() + " failed:\n" + process.out() + process.err());
}

Cluster::Cluster() : password_(random_hex()), port_(harness::free_port()) {
  const std::string data = folder_.path() + "/data";
  const std::string password_file = folder_.path() + "/password";
  std::ofstream(password_file) << password_ << "\n";
  run_program(as_server_user({server_programs() + "/initdb", "--pgdata=" + data, "--username=postgres", "--auth=scram-sha-256",
                              "--pwfile=" + password_file, "--encoding=UTF8", "--locale=C", "--no-sync"}));
  std::filesystem::remove(password_file);
  std::ofstream(data + "/pg_hba.conf") << "host all,replication postgres 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
  start();
  harness::SqlConnection admin(admin_conninfo("postgres"));
  admin.run("CREATE ROLE chatter LOGIN");
  admin.run("CREATE DATABASE chatterdb OWNER chatter");
}

Cluster::Cluster(Cluster& primary) : password_(primary.password_), port_(harness::free_port()) {
  run_program(as_server_user({server_programs() + "/pg_basebackup", "--dbname=" + primary.admin_conninfo("replication") + " application_name=standby",
                              "--pgdata=" + folder_.path() + "/data", "--write-recovery-conf", "--checkpoint=fast", "--no-sync"}));
  start();
}

void Cluster::wait_for_standby_only() {
  harness::SqlConnection admin(admin_conninfo("postgres"));
  admin.run("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
  admin.run("SELECT pg_reload_conf()");
  const bool follows = harness::eventually([&] {
    return !admin.run("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'").empty();
  });
  if (!follows) throw std::runtime_error("the standby does not follow");
}

void Cluster::promote() { harness::SqlConnection(admin_conninfo("postgres")).run("SELECT pg_promote()"); }

Cluster::~Cluster() { stop_immediately(); }

Arguments Cluster::as_server_user(const Arguments& command) const {
  Arguments whole;
  if (const passwd* user = server_user()) {
    whole = {"/usr/bin/env", "-C", "/", "setpriv", "--reuid=" + std::to_string(user->pw_uid),
             "--regid=" + std::to_string(user->pw_gid), "--init-groups"};
  } else {
    whole = {"/usr/bin/env"};
  }
  whole.insert(whole.end(), command.begin(), command.end());
  return whole;
}

void Cluster::start() {
  // The kernel forgets the death signal when the user changes, hence setpriv once more.
  Arguments command = as_server_user({"setpriv", "--pdeathsig", "QUIT", server_programs() + "/postgres", "-D", folder_.path() + "/data"});
  for (const std::string& setting :
       {"port=" + std::to_string(port_), std::string("listen_addresses=127.0.0.1"), std::string("unix_socket_directories="),
        std::string("max_connections=200"), std::string("shared_buffers=16MB"), std::string("fsync=off")}) {
    command.insert(command.end(), {"-c", setting});
  }
  server_ = std::make_unique<harness::Process>(command.front(), Arguments(command.begin() + 1, command.end()));
  const std::string address = "host=127.0.0.1 port=" + std::to_string(port_);
  const bool up = harness::eventually([&] { return server_->wait_exit(0) || PQping(address.c_str()) == PQPING_OK; }, kStartMs);
  if (!up || server_->wait_exit(0)) throw std::runtime_error("the private PostgreSQL did not start:\n" + server_->err());
}

void Cluster::stop_immediately() {
  if (!server_) return;
  server_->signal(SIGQUIT);
  server_->wait_exit(kStartMs);
  server_.reset();
}

bool Cluster::is_running() { return server_ && !server_->wait_exit(0); }

std::string Cluster::conninfo(int port) const {
  return "host=127.0.0.1 port=" + std::to_string(port == 0 ? port_ : port) + " user=chatter dbname=chatterdb";
}

std::string Cluster::admin_conninfo(const std::string& database) const {
  return "host=127.0.0.1 port=" + std::to_string(port_) + " user=postgres password=" + password_ + " dbname=" + database;
}

}  // namespace faults
