// Fuzz target: command line and environment (contract 6). The input is a list of strings, each ended by a
// NUL as in /proc/PID/cmdline: CHATTERD_NAME=VALUE is a variable, anything else an argument.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "config.hpp"
#include "ollama.hpp"
#include "tests/fuzz/fuzz.hpp"
#include "tests/fuzz/reference.hpp"

namespace fuzz {
namespace {

using Texts = std::map<std::string, std::string, std::less<>>;

constexpr double kSecondsMax = 24 * 60 * 60;

// parse_config() asks a plain function, which can't hold anything.
Texts variables;

const char* find_variable(const char* name) {
  const auto found = variables.find(name);
  return found == variables.end() ? nullptr : found->second.c_str();
}

std::vector<std::string> take_arguments(std::string_view text) {
  std::vector<std::string> arguments;
  variables.clear();
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\0'), text.size());
    const std::string string(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t equals = string.find('=');
    if (string.starts_with("CHATTERD_") && equals != std::string::npos) variables[string.substr(0, equals)] = string.substr(equals + 1);
    else arguments.push_back(string);
  }
  return arguments;
}

const Option* find_option(std::string_view name) {
  for (const Option& option : ::options()) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

// The text that counts for each option that is given, of a command line that was found right.
Texts chosen_texts(const std::vector<std::string>& arguments) {
  Texts texts;
  for (const Option& option : ::options()) {
    const char* value = find_variable(option.variable().c_str());
    if (value != nullptr && *value != '\0') texts[std::string(option.name)] = value;
  }
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    expect(arguments[i].starts_with("--"), "what is no option is refused");
    const std::size_t equals = arguments[i].find('=');
    const std::string name = arguments[i].substr(2, equals == std::string::npos ? equals : equals - 2);
    const Option* option = find_option(name);
    expect(option != nullptr, "an unknown option is refused");
    if (equals != std::string::npos) {
      texts[name] = arguments[i].substr(equals + 1);
    } else if (std::holds_alternative<bool Config::*>(option->field)) {
      texts[name] = "1";
    } else {
      expect(++i < arguments.size(), "an option without its value is refused");
      texts[name] = arguments[i];
    }
  }
  return texts;
}

// Checks one field against the text it was given, or against its default.
struct FieldCheck {
  const Config& config;
  const std::string* text;

  void operator()(std::string Config::*field) const {
    expect(config.*field == (text != nullptr ? *text : Config().*field), "a text is taken as it is");
  }
  void operator()(bool Config::*field) const {
    const bool on = text != nullptr && (*text == "1" || *text == "true" || *text == "yes" || *text == "on");
    const bool off = text == nullptr || *text == "0" || *text == "false" || *text == "no" || *text == "off";
    expect(on != off && config.*field == on, "a switch is on or off as its text says");
  }
  void operator()(const Option::Number& number) const {
    const std::size_t value = config.*(number.field);
    expect(value >= number.least && value <= number.most, "a number is within its bounds");
    expect(value == (text != nullptr ? std::strtoull(text->c_str(), nullptr, 10) : Config().*(number.field)), "a number is what its text says");
  }
  void operator()(const Option::Time& time) const {
    const auto value_ms = static_cast<double>((config.*(time.field)).count());
    expect(value_ms >= 0 && value_ms <= kSecondsMax * 1000, "a time is within its bounds");
    const double wanted_ms = text != nullptr ? std::strtod(text->c_str(), nullptr) * 1000 : static_cast<double>((Config().*(time.field)).count());
    expect(std::abs(value_ms - wanted_ms) < 1, "a time is what its text says, to the millisecond");
  }
  void operator()(const Option::Choice& choice) const {
    const std::string& value = config.*(choice.field);
    expect(value == (text != nullptr ? *text : Config().*(choice.field)), "a choice is taken as it is");
    expect((", " + std::string(choice.values) + ", ").find(", " + value + ", ") != std::string::npos, "a choice is one of its values");
  }
};

void check_config(const Config& config, const Texts& texts) {
  for (const Option& option : ::options()) {
    const auto text = texts.find(option.name);
    std::visit(FieldCheck{config, text == texts.end() ? nullptr : &text->second}, option.field);
  }
}

void check_ollama(const std::string& urls) {
  const auto addresses = OllamaAddress::parse_list(urls);
  if (!addresses.ok()) return;
  expect(!addresses.value().empty() && addresses.value().size() <= kOllamasMax, "Ollama has an address, and not too many");
  for (const OllamaAddress& address : addresses.value()) {
    expect(!address.host.empty() && !address.port.empty(), "Ollama's address is whole");
    // Both stand in each request to Ollama, where such a byte could end the line.
    expect(!has_control_byte(address.host_header) && !has_control_byte(address.api_path), "Ollama's address holds no control byte");
    expect(address.api_path.starts_with('/') && address.api_path.ends_with("/api"), "the API's path ends in /api");
  }
}

}  // namespace

void options(Bytes input) {
  const std::vector<std::string> arguments = take_arguments(Input(input).rest());
  const auto parsed = parse_config(arguments, find_variable);
  if (parsed.ok()) {
    check_config(parsed.value(), chosen_texts(arguments));
    check_ollama(parsed.value().ollama);
    expect(parsed.value().threads_max() > 0, "there is at least one thread");
    return;
  }
  const std::string& line = parsed.error().line;
  expect(line.starts_with("--") || line.starts_with('\'') || line.starts_with("CHATTERD_"), "an error names the option, argument or variable");
  expect(std::none_of(line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; }), "an error is one line");
}

}  // namespace fuzz

FUZZ_TARGET(options)
