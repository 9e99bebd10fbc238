#include "tests/catch.hpp"

#include <map>

#include "config.hpp"
#include "ollama.hpp"

namespace {

std::map<std::string, std::string> fake_environment;

const char* lookup(const char* name) {
  const auto found = fake_environment.find(name);
  return found == fake_environment.end() ? nullptr : found->second.c_str();
}

Result<Config, ConfigError> parse(const std::vector<std::string>& arguments, std::map<std::string, std::string> environment = {}) {
  fake_environment = std::move(environment);
  return parse_config(arguments, lookup);
}

std::string error_of(const std::vector<std::string>& arguments, std::map<std::string, std::string> environment = {}) {
  const auto parsed = parse(arguments, std::move(environment));
  return parsed.ok() ? "" : parsed.error().line;
}

}  // namespace

TEST_CASE("each option may come as an argument or as a variable, and the argument wins (6)", "[config]") {
  CHECK(parse({"--port", "80"}).value().port == 80);
  CHECK(parse({"--port=81"}).value().port == 81);
  CHECK(parse({}, {{"CHATTERD_PORT", "82"}}).value().port == 82);
  CHECK(parse({"--port", "83"}, {{"CHATTERD_PORT", "82"}}).value().port == 83);
  CHECK(parse({"--keep-whitespace"}).value().keep_whitespace);
  CHECK(parse({}, {{"CHATTERD_KEEP_WHITESPACE", "yes"}}).value().keep_whitespace);
  CHECK_FALSE(parse({}, {{"CHATTERD_KEEP_WHITESPACE", "0"}}).value().keep_whitespace);
  CHECK(parse({}, {{"CHATTERD_PORT", ""}}).value().port == 443);
}

TEST_CASE("times are given in seconds, with fractions (6)", "[config]") {
  CHECK(parse({"--ollama-grace", "0.3"}).value().ollama_grace == std::chrono::milliseconds(300));
  CHECK(parse({"--drain", "5"}).value().drain == std::chrono::seconds(5));
  CHECK(error_of({"--drain", "-1"}) == "--drain: '-1' is not a number of seconds from 0 to 86400");
  CHECK(error_of({"--drain", "5s"}) == "--drain: '5s' is not a number of seconds from 0 to 86400");
  CHECK(error_of({"--drain", "nan"}) == "--drain: 'nan' is not a number of seconds from 0 to 86400");
}

TEST_CASE("a wrong option is named in one line (6)", "[config]") {
  CHECK(error_of({"--prot", "1"}) == "--prot is not an option; chatterd --help lists them");
  CHECK(error_of({"443"}) == "'443' is not an option; chatterd --help lists them");
  CHECK(error_of({"--port"}) == "--port needs a value: --port PORT");
  CHECK(error_of({"--port", "65536"}) == "--port: '65536' is not a whole number from 0 to 65535");
  CHECK(error_of({"--max-streams", "0"}) == "--max-streams: '0' is not a whole number from 1 to 100000");
  CHECK(error_of({"--log-level", "loud"}) == "--log-level: 'loud' is not one of debug, info, warning, error");
  CHECK(error_of({"--log-format", "text, json"}) == "--log-format: 'text, json' is not one of text, json");
  CHECK(error_of({}, {{"CHATTERD_HTTP", "maybe"}}) == "CHATTERD_HTTP: 'maybe' is not 1 or 0");
}

TEST_CASE("every option is in --help, and every default is a value that the option takes (6)", "[config]") {
  for (const Option& option : options()) {
    CAPTURE(option.name);
    CHECK(help_text().find("  --" + std::string(option.name)) != std::string::npos);
    if (const std::string value = option.default_text(); !value.empty()) CHECK(error_of({"--" + std::string(option.name), value}).empty());
  }
}

TEST_CASE("there is a thread for each stream and some for short requests", "[config]") {
  CHECK(parse({}).value().threads_max() > parse({}).value().max_streams);
  CHECK(parse({"--threads", "7"}).value().threads_max() == 7);
}

TEST_CASE("Ollama's URL may end in /api or not (6)", "[config]") {
  CHECK(OllamaAddress::parse("http://localhost:11434")->api_path == "/api");
  CHECK(OllamaAddress::parse("http://localhost:11434/api")->api_path == "/api");
  CHECK(OllamaAddress::parse("http://localhost:11434/api/")->api_path == "/api");
  CHECK(OllamaAddress::parse("http://h/prefix")->api_path == "/prefix/api");
  CHECK(OllamaAddress::parse("http://h")->port == "80");
  const auto v6 = OllamaAddress::parse("http://[::1]:5/");
  CHECK(v6->host == "::1");
  CHECK(v6->port == "5");
  CHECK(v6->host_header == "[::1]:5");
  for (const char* wrong : {"", "localhost:11434", "https://h", "http://", "http://h:x", "http://a b", "http://h:1/\r\nX: y"}) {
    CAPTURE(wrong);
    CHECK_FALSE(OllamaAddress::parse(wrong).has_value());
  }
}
