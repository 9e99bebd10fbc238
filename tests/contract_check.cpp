// Contract section 6: --check, what a student runs when it does not work.
#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Finished check_with(const std::string& conninfo, const std::string& ollama_url, const Arguments& more = {},
                    const Environment& environment = {}) {
  Arguments arguments = usual_arguments(conninfo, ollama_url);
  arguments.emplace_back("--check");
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run_chatterd(arguments, environment);
}

// Exit 1, and the report holds all of these, whatever their case.
void check_reported(const Finished& finished, const std::vector<std::string>& parts) {
  INFO(finished.text());
  CHECK(finished.status == 1);
  for (const std::string& part : parts) {
    INFO("looked for: " << part);
    CHECK(holds(lower_case(finished.out + finished.err), lower_case(part)));
  }
}

// A database whose table is made.
void make_table(const Database& database, const ScriptedOllama& ollama) {
  Chatterd chatterd(usual_arguments(database.conninfo(), ollama.url()));
  chatterd.wait_until_ready();
  REQUIRE(chatterd.stop() == 0);
}

}  // namespace

TEST_CASE("--check says of each of the five that it is usable, and exits with 0 (6)", "[check]") {
  const Database database;
  const ScriptedOllama ollama;
  make_table(database, ollama);
  const Finished checked = check_with(database.conninfo(), ollama.url());
  INFO(checked.text());
  CHECK(checked.status == 0);
  for (const char* subject : {"configuration", "certificate", "database", "table", "ollama"}) {
    INFO(subject);
    CHECK(holds(lower_case(checked.out), subject));
  }
  CHECK(ollama.exchanges().empty());
}

TEST_CASE("--check behind a proxy (--http) needs no certificate (6)", "[check]") {
  const Database database;
  const ScriptedOllama ollama;
  make_table(database, ollama);
  const Finished checked =
      run_chatterd({"--http", "--db", database.conninfo(), "--ollama", ollama.url(), "--check"});
  INFO(checked.text());
  CHECK(checked.status == 0);
}

TEST_CASE("--check changes nothing (6)", "[check]") {
  Database database;
  const ScriptedOllama ollama;
  check_with(database.conninfo(), ollama.url());
  CHECK(database.value("SELECT to_regclass('chatts') IS NULL") == "t");
}

TEST_CASE("--check can run beside the chatterd that serves (6)", "[check]") {
  const Shared world;
  const Finished checked =
      check_with(world->database.conninfo(), world->ollama.url(), {"--port", std::to_string(world->endpoint.port)});
  INFO(checked.text());
  CHECK(checked.status == 0);
}

TEST_CASE("--check names a certificate that is missing, broken, over or another key's (6)", "[check]") {
  const Database database;
  const ScriptedOllama ollama;
  make_table(database, ollama);
  const TempFolder folder;
  const Certificate over = make_certificate(folder, "over", -3);
  const Certificate other = make_certificate(folder, "other");
  const std::string junk = folder.write("junk.pem", "junk\n");
  const auto check = [&](const std::string& cert, const std::string& key) {
    return check_with(database.conninfo(), ollama.url(), {"--cert", cert, "--key", key});
  };
  check_reported(check(folder.file("none.crt"), other.key_path), {"certificate", "none.crt", "make-cert.sh"});
  check_reported(check(other.cert_path, folder.file("none.key")), {"certificate", "none.key"});
  check_reported(check(junk, other.key_path), {"certificate", "junk.pem"});
  check_reported(check(over.cert_path, over.key_path), {"certificate", "expired"});
  check_reported(check(other.cert_path, over.key_path), {"certificate", "key"});
}

TEST_CASE("--check names a file of API keys that a start would refuse (6)", "[check]") {
  const Database database;
  const ScriptedOllama ollama;
  make_table(database, ollama);
  check_reported(check_with(database.conninfo(), ollama.url(), {"--api-keys", "/nowhere/keys"}), {"FAIL  configuration", "--api-keys"});
}

TEST_CASE("--check names a database that is away, unknown or closed to the role, and what mends it (6)", "[check]") {
  const Database database;
  const ScriptedOllama ollama;
  const Fd nobody = bind_loopback(0);
  const std::string port = std::to_string(port_of(nobody));
  check_reported(check_with("host=127.0.0.1 user=u dbname=d port=" + port, ollama.url()), {"database", port});
  const std::string server = "host=127.0.0.1 port=" + std::to_string(Database::server_port());
  check_reported(check_with(server + " user=ct_owner dbname=ct_no_such", ollama.url()), {"database", "ct_no_such"});
  check_reported(check_with(server + " user=ct_nobody dbname=" + database.name(), ollama.url()), {"database", "ct_nobody"});
}

TEST_CASE("--check of a database that does not answer comes to an end (6)", "[check]") {
  const Database database;
  const ScriptedOllama ollama;
  TcpProxy proxy(Database::server_address(), Database::server_port());
  proxy.freeze();
  check_reported(check_with(database.conninfo(proxy.port()), ollama.url()), {"database"});
}

TEST_CASE("--check names a table that the role may not bring up to date, and the command for it (6)", "[check]") {
  const Role role;
  Database database;
  const ScriptedOllama ollama;
  database.run("CREATE TABLE chatts (name text, message text, id uuid, time timestamptz DEFAULT now(), appid varchar(64)); "
               "ALTER TABLE chatts OWNER TO ct_owner; GRANT SELECT, INSERT, DELETE ON chatts TO " + role.name());
  check_reported(check_with(database.conninfo(0, role.name()), ollama.url()), {"table", "ct_owner", "psql"});
}

TEST_CASE("--check names a table whose rows the role may not read (6)", "[check]") {
  const Role role;
  const Database database;
  const ScriptedOllama ollama;
  make_table(database, ollama);
  check_reported(check_with(database.conninfo(0, role.name()), ollama.url()), {"table", "GRANT"});
}

TEST_CASE("--check names an Ollama that is away, ill or no Ollama at all (6)", "[check]") {
  const Database database;
  ScriptedOllama ollama;
  make_table(database, ollama);
  const Fd nobody = bind_loopback(0);
  const std::string port = std::to_string(port_of(nobody));
  check_reported(check_with(database.conninfo(), url_of(nobody)), {"ollama", port});
  for (const Script& script : {answer_document(500, "<html>"), answer_document(404, "404 page not found"),
                               answer_document(200, "<html>a router's page</html>", "text/html")}) {
    ollama.answer_health_with(script);
    check_reported(check_with(database.conninfo(), ollama.url()), {"ollama"});
  }
}

TEST_CASE("--check of an Ollama with very many models says how many (6)", "[check]") {
  const Database database;
  ScriptedOllama ollama;
  make_table(database, ollama);
  std::string models;
  for (int i = 0; i < 500; ++i) models += (i == 0 ? "{\"name\":\"" : ",{\"name\":\"") + std::string(400, 'm') + "\"}";
  ollama.answer_health_with(answer_document(200, "{\"models\":[" + models + "]}"));
  const Finished checked = check_with(database.conninfo(), ollama.url());
  INFO(checked.text());
  CHECK(checked.status == 0);
  CHECK(holds(checked.out, "500 models"));
}

TEST_CASE("--check of an Ollama that does not answer comes to an end (6)", "[check]") {
  const Database database;
  ScriptedOllama ollama;
  ollama.answer_health_with([](Conn& conn) { conn.wait_until_client_leaves(); });
  check_reported(check_with(database.conninfo(), ollama.url()), {"ollama"});
}

TEST_CASE("--check goes on after the first thing that is broken and names all (6)", "[check]") {
  const TempFolder folder;
  const Fd nobody = bind_loopback(0);
  const std::string port = std::to_string(port_of(nobody));
  const Finished checked = check_with("host=127.0.0.1 user=u dbname=d port=" + port, url_of(nobody),
                                      {"--cert", folder.file("none.crt")});
  check_reported(checked, {"certificate", "database", "ollama", "none.crt"});
}

TEST_CASE("--check of a wrong option is still exit 2 (6)", "[check]") {
  CHECK(run_chatterd({"--check", "--port", "abc"}).status == 2);
  CHECK(run_chatterd({"--check", "--no-such"}).status == 2);
}
