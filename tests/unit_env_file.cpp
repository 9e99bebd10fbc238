// The configuration file (systemd.exec(5), "EnvironmentFile="), and what a reload makes of it.
#include "tests/catch.hpp"

#include "config.hpp"
#include "env_file.hpp"

namespace {

// "NAME=value|..." of a text; "error: ..." when it is wrong.
std::string parsed(std::string_view text) {
  const auto file = parse_env_file(text);
  if (!file.ok()) return "error: " + file.error();
  std::string all;
  for (const auto& variable : file.value().variables) all += variable.name + "=" + variable.value + "|";
  return all;
}

const char* no_variable(const char*) { return nullptr; }
const char* port_80(const char* name) { return std::string_view(name) == "CHATTERD_PORT" ? "80" : nullptr; }

EnvFile file_of(std::string_view text) {
  EnvFile file = parse_env_file(text).value();
  file.path = "x.env";
  return file;
}

}  // namespace

TEST_CASE("the configuration file holds names and values, comments and empty lines (systemd.exec(5))", "[env]") {
  CHECK(parsed("").empty());
  CHECK(parsed("\n \n# a comment\n; another\n  # C=D\n").empty());
  CHECK(parsed("A=1\nB_2=two words\n") == "A=1|B_2=two words|");
  CHECK(parsed("A=1") == "A=1|");
  CHECK(parsed("A=1\r\nB=\r\n") == "A=1|B=|");
  CHECK(parsed("  A =  x y \t\n") == "A=x y|");
  CHECK(parsed("A=b=c # no comment") == "A=b=c # no comment|");
  CHECK(parsed("A=1\nA=2") == "A=1|A=2|");
  CHECK(file_of("A=1\nA=2").find("A")->value == "2");
  CHECK(file_of("A=1").find("B") == nullptr);
}

TEST_CASE("values of the configuration file may be quoted and escaped (systemd.exec(5))", "[env]") {
  CHECK(parsed("A=' x \"y\" \\n '  \n") == "A= x \"y\" \\n |");
  CHECK(parsed("A=\" x 'y' \\\" \\\\ \\$HOME \\` \\n \"") == "A= x 'y' \" \\ $HOME ` \\n |");
  CHECK(parsed("A='one\ntwo'\nB=3") == "A=one\ntwo|B=3|");
  CHECK(parsed("A='one' \"two\"three") == "A=onetwothree|");
  CHECK(parsed("A=it's") == "A=it's|");
  CHECK(parsed("A=a\\\nb\\ \nB=\\#") == "A=ab |B=#|");
  CHECK(parsed("A=\"a\\\nb\"") == "A=ab|");
  CHECK(parsed("A=x\\") == "A=x|");
}

TEST_CASE("what is no variable in the configuration file is an error that names the line and no value", "[env]") {
  CHECK(parsed("A=1\nsecret\n") == "error: line 2 has no `=`");
  CHECK(parsed("# c\n\nexport A=secret") == "error: line 3 does not begin with the name of a variable");
  CHECK(parsed("1A=secret") == "error: line 1 does not begin with the name of a variable");
  CHECK(parsed("=secret") == "error: line 1 does not begin with the name of a variable");
  CHECK(parsed("A='one\ntwo'\nB=\"secret\nC=1") == "error: line 3 has a quote that does not end");
  CHECK(parsed(std::string_view("A=1\0", 4)) == "error: it is not a text file");
}

TEST_CASE("a file that can't be read, or is none, is named", "[env]") {
  CHECK(read_env_file("/no/such/file").error() == "--env-file: /no/such/file can't be used: No such file or directory.");
  CHECK(read_env_file("/dev/zero").error() == "--env-file: /dev/zero can't be used: it is not a file.");
}

TEST_CASE("an option wins over the file, the file over the environment, and an empty value is as good as none", "[env]") {
  CHECK(parse_config({"--port", "82"}, port_80, file_of("CHATTERD_PORT=81")).value().port == 82);
  CHECK(parse_config({}, port_80, file_of("CHATTERD_PORT=81")).value().port == 81);
  CHECK(parse_config({}, port_80, file_of("PGPASSWORD=x")).value().port == 80);
  CHECK(parse_config({}, port_80, file_of("CHATTERD_PORT=")).value().port == 443);
}

TEST_CASE("a wrong value or a misspelt name in the file is named with its line", "[env]") {
  const auto error_of = [](std::string_view text) { return parse_config({}, no_variable, file_of(text)).error().line; };
  CHECK(error_of("\nCHATTERD_DRAIN=soon") == "--env-file: x.env, line 2: CHATTERD_DRAIN: 'soon' is not a number of seconds from 0 to 86400");
  CHECK(error_of("CHATTERD_DRIAN=1") == "--env-file: x.env, line 1: CHATTERD_DRIAN is not an option's variable; chatterd --help lists the options");
  CHECK(error_of("CHATTERD_ENV_FILE=y").find("CHATTERD_ENV_FILE is not") != std::string::npos);
}

TEST_CASE("a reload takes limits over, and names what needs a restart", "[env]") {
  const Config running = parse_config({}, no_variable).value();
  const Config wanted = parse_config({"--drain", "1", "--max-body", "5", "--port", "1", "--db", "x", "--keep-whitespace", "--http"}, no_variable).value();
  const Reloaded reloaded = reload_config(running, wanted);
  CHECK(reloaded.config.drain == std::chrono::seconds(1));
  CHECK(reloaded.config.max_body == 5);
  CHECK(reloaded.config.keep_whitespace);
  CHECK(reloaded.config.port == 443);
  CHECK(reloaded.config.db.empty());
  CHECK_FALSE(reloaded.config.http);
  CHECK(reloaded.changed == std::vector<std::string>{"--keep-whitespace", "--max-body", "--drain"});
  CHECK(reloaded.needs_restart == std::vector<std::string>{"--port", "--http", "--db"});
  CHECK(reload_config(running, running).changed.empty());
}
