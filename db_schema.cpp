// The table: is it usable as it is, may this role mend it, and what has to be done otherwise.
#include <algorithm>

#include "db.hpp"
#include "db_connection.hpp"
#include "db_servers.hpp"
#include "log.hpp"

using db_internal::Connection;
using db_internal::PgResult;

namespace {

// Rewriting a table of millions of rows takes minutes.
constexpr auto kUpgradeMax = std::chrono::minutes(30);
// Another program's long transaction must not make chatterd, and everyone behind it, wait for ever.
constexpr const char* kLockTimeout = "SET lock_timeout = '5s'; ";

// to_regclass() also sees a table that was made after the query began, which pg_class and pg_attribute don't show yet:
// for this query there is none, or else it would be one without columns.
constexpr const char* kLook = R"sql(
  SELECT current_user, current_database(), coalesce(current_schema(), 'public'),
         EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('chatts')),
         has_schema_privilege(coalesce(current_schema(), 'public'), 'CREATE'),
         coalesce((SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('chatts')), ''),
         coalesce((SELECT pg_has_role(current_user, relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('chatts')), false),
         (SELECT coalesce(string_agg(wanted, ', '), '') FROM unnest(ARRAY['name', 'message', 'id', 'time', 'appid']) AS wanted
           WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('chatts') AND attname = wanted AND NOT attisdropped)),
         EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('chatts') AND attname = 'seq' AND NOT attisdropped)
           AND (SELECT count(*) = 2 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
                WHERE indrelid = to_regclass('chatts') AND indisvalid AND relname IN ('chatts_conversation', 'chatts_public')),
         coalesce(has_table_privilege(to_regclass('chatts'), 'SELECT') AND has_table_privilege(to_regclass('chatts'), 'INSERT')
           AND has_table_privilege(to_regclass('chatts'), 'DELETE'), false),
         coalesce((SELECT has_schema_privilege(relowner, coalesce(current_schema(), 'public'), 'CREATE')
                   FROM pg_class WHERE oid = to_regclass('chatts')), false),
         coalesce((SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('chatterd_turns')), ''),
         (SELECT coalesce(bool_and(has_table_privilege(to_regclass('chatterd_turns'), wanted)), false)
           FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS wanted)
)sql";

struct Look {
  std::string user, database, schema, owner, turns_owner, missing_columns, host, port;  // no owner: no table
  bool table, may_create, may_alter, up_to_date, may_use, owner_may_create, may_take_turns;
};

std::string shell_quote(const std::string& text) {
  const bool plain = !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || std::string_view("_-./:").find(c) != std::string_view::npos;
  });
  if (plain) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string sql_quote(const std::string& name) {
  std::string quoted = "\"";
  for (const char c : name) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

// psql as `role` on the same database. Debian lets postgres in by its own system user, without a password.
std::string psql_as(const std::string& role, const Look& look) {
  const bool local = look.host.empty() || look.host == "localhost" || look.host == "127.0.0.1" || look.host == "::1" || look.host.starts_with('/');
  if (role == "postgres" && local) return "sudo -u postgres psql -p " + look.port + " -d " + shell_quote(look.database);
  return "psql -h " + shell_quote(look.host) + " -p " + look.port + " -U " + shell_quote(role) + " -d " + shell_quote(look.database);
}

Result<Look, DbFailure> look_at_table(Connection& connection, Deadline deadline) {
  auto result = connection.run_script(kLook, deadline);
  if (!result.ok()) return result.error();
  const PGresult* row = result.value().get();
  const auto text = [&](int column) { return std::string(PQgetvalue(row, 0, column)); };
  const auto yes = [&](int column) { return text(column) == "t"; };
  Look look{};
  look.user = text(0);
  look.database = text(1);
  look.schema = text(2);
  look.table = yes(3);
  look.may_create = yes(4);
  look.owner = text(5);
  look.may_alter = yes(6);
  look.missing_columns = look.table ? text(7) : "";
  look.may_use = yes(9);
  look.owner_may_create = yes(10);
  look.turns_owner = text(11);
  look.up_to_date = look.table && yes(8) && !look.turns_owner.empty();
  look.may_take_turns = yes(12);
  look.host = connection.host();
  look.port = connection.port();
  return look;
}

// What keeps this role from using the table, when it is not the upgrade that is missing; "" for nothing.
std::string find_obstacle(const Look& look) {
  const std::string role = "The role " + look.user;
  if (!look.missing_columns.empty()) {
    return "The table chatts in database " + look.database + " lacks the columns " + look.missing_columns +
           ": it is not chatterd's; use another database (--db).";
  }
  const bool lacks_table = !look.table || look.turns_owner.empty();
  if (lacks_table && !look.may_create && (!look.table || look.may_alter)) {
    return role + " may not create a table in database " + look.database + ". Run: " + psql_as("postgres", look) + " -c " +
           shell_quote("GRANT USAGE, CREATE ON SCHEMA " + sql_quote(look.schema) + " TO " + sql_quote(look.user));
  }
  if (look.table && !look.up_to_date && !look.may_alter) {
    return role + " may not bring the table chatts in database " + look.database + " up to date: it belongs to " + look.owner +
           ". Run: chatterd --print-schema | " + psql_as(lacks_table && !look.owner_may_create ? "postgres" : look.owner, look);
  }
  if (look.table && !look.may_use && !look.may_alter) {
    return role + " may not read and write the table chatts in database " + look.database + ". Run: " + psql_as(look.owner, look) + " -c " +
           shell_quote("GRANT SELECT, INSERT, DELETE ON chatts TO " + sql_quote(look.user));
  }
  if (look.up_to_date && !look.may_take_turns) {
    return role + " may not read and write the table chatterd_turns in database " + look.database + ". Run: " + psql_as(look.turns_owner, look) +
           " -c " + shell_quote("GRANT SELECT, INSERT, UPDATE, DELETE ON chatterd_turns TO " + sql_quote(look.user));
  }
  return "";
}

SchemaProblem as_problem(const DbFailure& failure) {
  const bool passing = failure.fault == DbFault::unavailable || failure.fault == DbFault::retry;
  return {passing, (passing ? "The database can't be used now: " : "The table chatts can't be made or brought up to date: ") + failure.detail};
}

}  // namespace

std::string_view schema_sql() {
  static constexpr std::string_view kText =
#include "schema_sql.inc"
      ;
  return kText;
}

TableState Database::look() {
  const Deadline deadline = call_deadline();
  auto opened = servers_->connect({}, call_timeout_, deadline);
  if (!opened.ok()) return {opened.error().detail, "", false};
  const auto look = look_at_table(*opened.value(), deadline);
  if (!look.ok()) return {look.error().detail, "", false};
  return {"", find_obstacle(look.value()), look.value().up_to_date};
}

std::optional<SchemaProblem> Database::prepare_schema() {
  const Deadline deadline = call_deadline();
  auto opened = servers_->connect({}, call_timeout_, deadline);
  if (!opened.ok()) return as_problem(opened.error());
  Connection& connection = *opened.value();
  auto look = look_at_table(connection, deadline);
  if (!look.ok()) return as_problem(look.error());
  if (std::string obstacle = find_obstacle(look.value()); !obstacle.empty()) return SchemaProblem{false, std::move(obstacle)};
  if (!look.value().up_to_date) {
    LogLine(LogLevel::info, look.value().table ? "table_upgrade" : "table_create").add("database", look.value().database);
    auto upgraded = connection.run_script(kLockTimeout + std::string(schema_sql()), Deadline::after(kUpgradeMax));
    if (!upgraded.ok()) return as_problem(upgraded.error());
  }
  const std::lock_guard lock(mutex_);
  schema_ready_ = true;
  return std::nullopt;
}
