// What is written about the options, against the table that they are made from. With DOCUMENTS_UPDATE set
// these tests write their part of each document instead: `make readme`.
#include "tests/catch.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "config.hpp"

namespace {

// Those that make no service, those that the unit itself gives, and the one for what starts as root.
constexpr std::string_view kNotInEnvironmentFile[] = {"check", "print-schema", "version", "help", "env-file", "cert", "key", "user"};
constexpr size_t kColumnsMax = 100;

std::string replaced(std::string_view text, char from, std::string_view to) {
  std::string result;
  for (const char c : text) {
    if (c == from) {
      result += to;
    } else {
      result += c;
    }
  }
  return result;
}

std::string help_of(const Option& option) { return std::string(option.help) + (option.reloads ? " (*)" : ""); }

std::string markdown_table() {
  std::string table = "| option | default | what it is for |\n|---|---|---|\n";
  for (const Option& option : options()) {
    const std::string value_name = replaced(option.value_name, '|', "\\|");
    table += "| `--" + std::string(option.name) + (value_name.empty() ? "" : " " + value_name) + "` | ";
    const std::string value = option.default_text();
    table += (value.empty() ? "" : "`" + value + "`") + " | " + replaced(help_of(option), '|', "\\|") + " |\n";
  }
  return table;
}

std::string comment_lines(std::string_view text) {
  std::istringstream words{std::string(text)};
  std::string lines;
  std::string line = "#";
  for (std::string word; words >> word;) {
    if (line.size() + 1 + word.size() > kColumnsMax) {
      lines += line + "\n";
      line = "#";
    }
    line += " " + word;
  }
  return lines + line + "\n";
}

std::string environment_lines() {
  std::string lines;
  for (const Option& option : options()) {
    if (std::find(std::begin(kNotInEnvironmentFile), std::end(kNotInEnvironmentFile), option.name) != std::end(kNotInEnvironmentFile)) continue;
    const bool is_switch = option.value_name.empty();
    lines += "\n" + comment_lines(help_of(option)) + "#" + option.variable() + "=" + (is_switch ? "0" : option.default_text()) + "\n";
  }
  return lines;
}

std::string roff(std::string_view text) { return replaced(replaced(replaced(text, '\\', "\\e"), '-', "\\-"), '`', "\""); }

std::string manual_lines() {
  std::string lines;
  for (const Option& option : options()) {
    const std::string name = roff("--" + std::string(option.name));
    lines += option.value_name.empty() ? ".TP\n.B " + name + "\n" : ".TP\n.BI " + name + " \" " + roff(option.value_name) + "\"\n";
    lines += roff(help_of(option));
    if (const std::string value = option.default_text(); !value.empty()) lines += " (" + roff(value) + ")";
    lines += "\n";
  }
  return lines;
}

// The part of a file between the lines `begin` and `end` is `wanted`.
void check_part(const std::string& file, const std::string& begin, const std::string& end, const std::string& wanted) {
  std::ostringstream buffer;
  buffer << std::ifstream(file).rdbuf();
  std::string text = buffer.str();
  const size_t from = text.find(begin + "\n");
  const size_t to = text.find(end + "\n");
  REQUIRE(from != std::string::npos);
  REQUIRE(to != std::string::npos);
  const size_t part_at = from + begin.size() + 1;
  if (std::getenv("DOCUMENTS_UPDATE") != nullptr) {
    text.replace(part_at, to - part_at, wanted);
    std::ofstream(file) << text;
    return;
  }
  CHECK(text.substr(part_at, to - part_at) == wanted);
}

}  // namespace

TEST_CASE("README.md holds the options table as --help has it", "[documents]") {
  check_part("README.md", "<!-- options -->", "<!-- /options -->", markdown_table());
}

TEST_CASE("the environment file names every option of a service with its default (docs/operations.md)", "[documents]") {
  check_part("packaging/chatterd.env", "# <options>", "# </options>", environment_lines());
}

TEST_CASE("the manual page names every option with its default (docs/operations.md)", "[documents]") {
  check_part("packaging/chatterd.8", ".\\\" <options>", ".\\\" </options>", manual_lines());
}
