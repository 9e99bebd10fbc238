#include "tests/harness/database.hpp"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "tests/harness/net.hpp"

namespace harness {
namespace {

struct Server {
  std::string address = "127.0.0.1";
  std::string port = "5432";
  std::string user = "postgres";
  std::string admin_conninfo;
};

const Server& server() {
  static const Server* const parsed = [] {
    const char* text = std::getenv("CHATTERD_TEST_DB");
    if (text == nullptr || *text == '\0') {
      throw std::runtime_error("CHATTERD_TEST_DB is not set: the tests need a superuser's connection string");
    }
    Server& found = *new Server;  // like admin() never destroyed
    found.admin_conninfo = text;
    PQconninfoOption* options = PQconninfoParse(text, nullptr);
    if (options == nullptr) throw std::runtime_error("CHATTERD_TEST_DB is not a connection string");
    for (const PQconninfoOption* option = options; option->keyword != nullptr; ++option) {
      if (option->val == nullptr) continue;
      if (std::strcmp(option->keyword, "host") == 0) found.address = option->val;
      if (std::strcmp(option->keyword, "port") == 0) found.port = option->val;
      if (std::strcmp(option->keyword, "user") == 0) found.user = option->val;
    }
    PQconninfoFree(options);
    if (found.address == "localhost") found.address = "127.0.0.1";
    return &found;
  }();
  return *parsed;
}

std::string unique_name(const char* kind) {
  static int count = 0;
  return std::string("ct_") + kind + "_" + std::to_string(::getpid()) + "_" + std::to_string(++count);
}

SqlConnection& admin() {
  // Never destroyed: databases that live to the end of the program are dropped through it.
  static SqlConnection* const connection = new SqlConnection(server().admin_conninfo);
  return *connection;
}

std::string conninfo_of(const std::string& database, const std::string& user, const std::string& port) {
  return "host=" + server().address + " port=" + port + " user=" + user + " dbname=" + database;
}

}  // namespace

SqlConnection::SqlConnection(const std::string& conninfo) : connection_(PQconnectdb(conninfo.c_str())) {
  if (PQstatus(connection_.get()) != CONNECTION_OK) {
    throw std::runtime_error(std::string("the tests cannot connect: ") + PQerrorMessage(connection_.get()));
  }
  PQsetNoticeProcessor(
      connection_.get(), [](void*, const char*) {}, nullptr);
}

std::vector<Row> SqlConnection::run(const std::string& sql, const std::vector<std::string>& parameters) {
  std::vector<const char*> values;
  for (const std::string& parameter : parameters) values.push_back(parameter.c_str());
  // Without parameters the text may hold several statements.
  PGresult* raw = parameters.empty() ? PQexec(connection_.get(), sql.c_str())
                                     : PQexecParams(connection_.get(), sql.c_str(), static_cast<int>(values.size()),
                                                    nullptr, values.data(), nullptr, nullptr, 0);
  const std::unique_ptr<PGresult, void (*)(PGresult*)> result(raw, PQclear);
  const ExecStatusType status = PQresultStatus(raw);
  if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK) {
    throw std::runtime_error("SQL failed: " + sql + ": " + PQerrorMessage(connection_.get()));
  }
  std::vector<Row> rows;
  for (int row = 0; row < PQntuples(raw); ++row) {
    Row& fields = rows.emplace_back();
    for (int column = 0; column < PQnfields(raw); ++column) {
      const bool null = PQgetisnull(raw, row, column) != 0;
      fields.emplace_back(null ? "<null>" : PQgetvalue(raw, row, column));
    }
  }
  return rows;
}

Database::Database() : name_(unique_name("db")) {
  admin().run("DO $$BEGIN CREATE ROLE " + owner() +
              " LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END$$");
  admin().run("CREATE DATABASE " + name_ + " OWNER " + owner() + " TEMPLATE template0 ENCODING 'UTF8'");
  admin_ = std::make_unique<SqlConnection>(connect());
}

Database::~Database() {
  admin_.reset();
  try {
    admin().run("DROP DATABASE " + name_ + " WITH (FORCE)");
  } catch (const std::exception&) {
    // The cluster is thrown away after the run; a database that stays behind harms nobody.
  }
}

std::string Database::owner() { return "ct_owner"; }

std::string Database::conninfo(int port, const std::string& role) const {
  return conninfo_of(name_, role, port == 0 ? server().port : std::to_string(port));
}

std::vector<Row> Database::run(const std::string& sql, const std::vector<std::string>& parameters) {
  return admin_->run(sql, parameters);
}

std::string Database::value(const std::string& sql, const std::vector<std::string>& parameters) {
  const std::vector<Row> rows = run(sql, parameters);
  return rows.empty() ? "<no row>" : rows.front().front();
}

SqlConnection Database::connect() const { return SqlConnection(conninfo_of(name_, server().user, server().port)); }

std::vector<Row> Database::conversation(const std::string& app_id) {
  return run("SELECT name, message FROM chatts WHERE appid = $1 ORDER BY seq", {app_id});
}

std::vector<Row> Database::wait_for_rows(const std::string& app_id, size_t count) {
  std::vector<Row> rows;
  eventually([&] { return (rows = conversation(app_id)).size() >= count; });
  return rows;
}

std::string Database::server_address() { return server().address; }
int Database::server_port() { return std::stoi(server().port); }

Role::Role() : name_(unique_name("role")) { admin().run("CREATE ROLE " + name_ + " LOGIN"); }

Role::~Role() {
  try {
    admin().run("DROP ROLE " + name_);
  } catch (const std::exception&) {
    // As above: the cluster does not outlive the run.
  }
}

}  // namespace harness
