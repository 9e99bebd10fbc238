#include "config.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "text.hpp"

namespace {

constexpr std::string_view kVariablePrefix = "CHATTERD_";
constexpr size_t kKiB = 1024;
constexpr size_t kGiB = kKiB * kKiB * kKiB;

// What a request or connection looks up each time, and what is read from files again.
constexpr bool kReloads = true;

const Option kOptions[] = {
    {"env-file", "FILE", &Config::env_file,
     "the configuration file: lines CHATTERD_SOME_NAME=VALUE as in systemd's EnvironmentFile; they win over the environment, and are read again on SIGHUP"},
    {"host", "ADDRESS", &Config::host, "address to listen on; without it all of the machine's, IPv4 and IPv6"},
    {"port", "PORT", Option::Number{&Config::port, 0, 65535}, "port to listen on; 0 picks a free one"},
    {"cert", "FILE", &Config::cert, "TLS certificate (PEM, with its chain)", kReloads},
    {"key", "FILE", &Config::key, "TLS private key (PEM)", kReloads},
    {"http", "", &Config::http, "serve plain HTTP, for use behind a proxy"},
    {"db", "CONNECTION", &Config::db,
     "libpq connection string; without it `host=localhost user=chatter dbname=chatterdb` and what libpq's own variables (PGHOST, PGPASSWORD, ...) say"},
    {"db-pool", "N", Option::Number{&Config::db_pool, 1, 1000}, "database connections at most"},
    {"db-timeout", "SECONDS", Option::Time{&Config::db_timeout}, "for one call to the database, with the wait for a connection", kReloads},
    {"store-retry", "SECONDS", Option::Time{&Config::store_retry}, "how long storing a reply is tried while the database is away", kReloads},
    {"ollama", "URL[,URL...]", &Config::ollama, "where Ollama is; one that ends in /api means the same. Of several each prompt goes to the least busy, among equals to the first; one that fails, is busy or lacks the model is passed over"},
    {"ollama-grace", "SECONDS", Option::Time{&Config::ollama_grace}, "how long to wait for Ollama's status before the stream begins", kReloads},
    {"ollama-timeout", "SECONDS", Option::Time{&Config::ollama_timeout}, "silence of Ollama after which an answer is given up", kReloads},
    {"reply-seconds", "SECONDS", Option::Time{&Config::reply_seconds}, "the longest a whole answer may take", kReloads},
    {"max-line", "BYTES", Option::Number{&Config::max_line, kKiB, kGiB}, "largest line of Ollama's answer", kReloads},
    {"max-reply", "BYTES", Option::Number{&Config::max_reply, kKiB, 64 * kGiB}, "largest whole answer of Ollama", kReloads},
    {"keep-whitespace", "", &Config::keep_whitespace, "store replies byte for byte, runs of white space not made one space", kReloads},
    {"max-body", "BYTES", Option::Number{&Config::max_body, 1, kGiB}, "largest body of a request", kReloads},
    {"body-memory", "BYTES", Option::Number{&Config::body_memory, 1, 64 * kGiB}, "memory for the bodies of all requests together, small ones of up to 16 KB aside; more get a 503", kReloads},
    {"max-history", "BYTES", Option::Number{&Config::max_history, 64 * kKiB, 64 * kGiB}, "longest conversation that is sent to Ollama, by the memory it takes, which may be twice its text; with a longer one a prompt gets a 413", kReloads},
    {"max-streams", "N", Option::Number{&Config::max_streams, 1, 100'000}, "answers streamed at the same time; more get a 503", kReloads},
    {"streams-per-client", "N", Option::Number{&Config::streams_per_client, 0, 100'000}, "answers streamed to one client address at the same time; more get a 429; 0: no limit", kReloads},
    {"rate", "N", Option::Number{&Config::rate, 0, 1'000'000}, "requests a second from one client address, with bursts of twice as many; more get a 429; 0: no limit", kReloads},
    {"api-keys", "FILE", &Config::api_keys, "with it every route but GET / needs `Authorization: Bearer KEY`; a line of the file is the SHA-256 of a key, in hex; the file is read again on SIGHUP", kReloads},
    {"user", "NAME", &Config::user, "started as root, become this user before serving; without it the user who called sudo, else nobody"},
    {"state-dir", "FOLDER", &Config::state_dir, "for replies that wait for the database; without it systemd's STATE_DIRECTORY, /var/lib/chatterd as root, else ~/.local/state/chatterd"},
    {"max-connections", "N", Option::Number{&Config::max_connections, 1, 1'000'000}, "client connections at most, idle ones included", kReloads},
    {"threads", "N", Option::Number{&Config::threads, 0, 100'000}, "threads at most, started as needed; 0: --max-streams and 64 more", kReloads},
    {"header-timeout", "SECONDS", Option::Time{&Config::header_timeout}, "for a TLS handshake and a request's headers together", kReloads},
    {"body-timeout", "SECONDS", Option::Time{&Config::body_timeout}, "for a request's body", kReloads},
    {"idle-timeout", "SECONDS", Option::Time{&Config::idle_timeout}, "how long a connection is kept between two requests", kReloads},
    {"write-timeout", "SECONDS", Option::Time{&Config::write_timeout}, "after which a client that does not read is dropped", kReloads},
    {"turn-wait", "SECONDS", Option::Time{&Config::turn_wait}, "how long a request waits for an earlier one with its appID", kReloads},
    {"ping-interval", "SECONDS", Option::Time{&Config::ping_interval}, "silence after which a stream gets a comment; 0: never", kReloads},
    {"drain", "SECONDS", Option::Time{&Config::drain}, "how long streams may go on after SIGTERM", kReloads},
    {"admin", "HOST:PORT", &Config::admin,
     "address for GET /healthz, /readyz and /metrics, plain HTTP for whoever reaches it, such as 127.0.0.1:9091; without it they are not served"},
    {"log-level", "LEVEL", Option::Choice{&Config::log_level, "debug, info, warning, error"}, "what is logged at least: debug, info, warning or error", kReloads},
    {"log-format", "FORMAT", Option::Choice{&Config::log_format, "text, json"}, "a line of the log is text (key=value) or json (an object)"},
    {"check", "", &Config::check, "say of configuration, certificate, database, table and Ollama whether each is usable, then exit"},
    {"print-schema", "", &Config::print_schema, "print the SQL that makes or upgrades the table, then exit"},
    {"version", "", &Config::version, "print the version, then exit"},
    {"help", "", &Config::help, "print this, then exit"},
};

constexpr Config::Seconds kSecondsMax = std::chrono::hours(24);

template <class... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <class... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;  // clang 14 does not find it by itself

std::string seconds_text(Config::Seconds time) {
  std::string text = std::to_string(time.count() / 1000);
  if (const auto rest = time.count() % 1000; rest != 0) {
    std::string fraction = std::to_string(1000 + rest).substr(1);
    while (fraction.back() == '0') fraction.pop_back();
    text += "." + fraction;
  }
  return text;
}

bool parse_switch(const std::string& text, bool& out) {
  static constexpr std::string_view kOn[] = {"1", "true", "yes", "on"};
  static constexpr std::string_view kOff[] = {"0", "false", "no", "off"};
  out = std::find(std::begin(kOn), std::end(kOn), text) != std::end(kOn);
  return out || std::find(std::begin(kOff), std::end(kOff), text) != std::end(kOff);
}

// Sets one field. Returns what the value should have been when it is wrong, else "".
std::string set_field(Config& config, const Option& option, const std::string& value) {
  return std::visit(
      Overloaded{
          [&](std::string Config::*field) -> std::string {
            config.*field = value;
            return "";
          },
          [&](bool Config::*field) -> std::string { return parse_switch(value, config.*field) ? "" : "1 or 0"; },
          [&](const Option::Number& number) -> std::string {
            size_t parsed = 0;
            const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), parsed);
            if (error == std::errc() && end == value.data() + value.size() && parsed >= number.least && parsed <= number.most) {
              config.*(number.field) = parsed;
              return "";
            }
            return "a whole number from " + std::to_string(number.least) + " to " + std::to_string(number.most);
          },
          [&](const Option::Time& time) -> std::string {
            double seconds = 0;
            const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seconds, std::chars_format::fixed);
            const double most = std::chrono::duration<double>(kSecondsMax).count();
            if (error == std::errc() && end == value.data() + value.size() && seconds >= 0 && seconds <= most) {
              config.*(time.field) = Config::Seconds(std::llround(seconds * 1000));
              return "";
            }
            return "a number of seconds from 0 to " + seconds_text(kSecondsMax);
          },
          [&](const Option::Choice& choice) -> std::string {
            if (!is_one_of(value, choice.values)) return "one of " + std::string(choice.values);
            config.*(choice.field) = value;
            return "";
          },
      },
      option.field);
}

bool is_switch(const Option& option) { return std::holds_alternative<bool Config::*>(option.field); }

const Option* find_option(std::string_view name) {
  const auto found = std::find_if(std::begin(kOptions), std::end(kOptions), [&](const Option& option) { return option.name == name; });
  return found == std::end(kOptions) ? nullptr : &*found;
}

// A text of the user's for an error's one line: control bytes are escaped as in JSON.
std::string one_line(std::string_view text) {
  std::string json;
  append_json_string(json, text);
  return json.substr(1, json.size() - 2);
}

ConfigError wrong_value(const std::string& shown, const std::string& value, const std::string& wanted) {
  return {shown + ": '" + one_line(value) + "' is not " + wanted};
}

// Reads argument i, and its value when it has one; i then stands on the last argument read.
std::optional<ConfigError> read_argument(Config& config, const std::vector<std::string>& arguments, size_t& i) {
  const std::string& argument = arguments[i];
  if (!argument.starts_with("--")) return ConfigError{"'" + one_line(argument) + "' is not an option; chatterd --help lists them"};
  const size_t equals = argument.find('=');
  const std::string shown = argument.substr(0, equals);
  const Option* option = find_option(std::string_view(shown).substr(2));
  if (option == nullptr) return ConfigError{one_line(shown) + " is not an option; chatterd --help lists them"};
  std::string value = "1";
  if (equals != std::string::npos) {
    value = argument.substr(equals + 1);
  } else if (!is_switch(*option)) {
    if (i + 1 == arguments.size()) return ConfigError{shown + " needs a value: " + shown + " " + std::string(option->value_name)};
    value = arguments[++i];
  }
  if (const std::string wanted = set_field(config, *option, value); !wanted.empty()) return wrong_value(shown, value, wanted);
  return std::nullopt;
}

std::string place_in(const EnvFile& file, const EnvFile::Variable& variable) {
  return "--env-file: " + one_line(file.path) + ", line " + std::to_string(variable.line) + ": ";
}

// The file holds chatterd's configuration: a name in it that is no option's is misspelt.
std::optional<ConfigError> unknown_variable(const EnvFile& file) {
  for (const EnvFile::Variable& variable : file.variables) {
    if (!variable.name.starts_with(kVariablePrefix)) continue;
    const auto is_its = [&](const Option& option) { return option.variable() == variable.name && option.name != "env-file"; };
    if (std::any_of(std::begin(kOptions), std::end(kOptions), is_its)) continue;
    return ConfigError{place_in(file, variable) + variable.name + " is not an option's variable; chatterd --help lists the options"};
  }
  return std::nullopt;
}

}  // namespace

std::span<const Option> options() { return kOptions; }

std::string Option::variable() const {
  std::string text(kVariablePrefix);
  for (const char c : name) text += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

std::string Option::default_text() const {
  const Config defaults;
  return std::visit(Overloaded{
                        [&](std::string Config::*text) { return defaults.*text; },
                        [&](bool Config::*) { return std::string(); },
                        [&](const Number& number) { return std::to_string(defaults.*(number.field)); },
                        [&](const Time& time) { return seconds_text(defaults.*(time.field)); },
                        [&](const Choice& choice) { return defaults.*(choice.field); },
                    },
                    field);
}

Result<EnvFile, ConfigError> load_env_file(const std::vector<std::string>& arguments, Environment environment) {
  Config named;
  const char* variable = environment(find_option("env-file")->variable().c_str());
  named.env_file = variable == nullptr ? "" : variable;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (read_argument(named, arguments, i)) break;  // parse_config() says what is wrong
  }
  if (named.env_file.empty()) return EnvFile{};
  auto file = read_env_file(named.env_file);
  if (!file.ok()) return ConfigError{one_line(file.error())};
  return std::move(file.value());
}

Result<Config, ConfigError> parse_config(const std::vector<std::string>& arguments, Environment environment, const EnvFile& file) {
  Config config;
  if (auto error = unknown_variable(file)) return *error;
  for (const Option& option : kOptions) {
    const std::string variable = option.variable();
    const EnvFile::Variable* in_file = file.find(variable);
    const char* value = in_file != nullptr ? in_file->value.c_str() : environment(variable.c_str());
    if (value == nullptr || *value == '\0') continue;
    const std::string shown = in_file != nullptr ? place_in(file, *in_file) + variable : variable;
    if (const std::string wanted = set_field(config, option, value); !wanted.empty()) return wrong_value(shown, value, wanted);
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (auto error = read_argument(config, arguments, i)) return *error;
  }
  return config;
}

Reloaded reload_config(const Config& running, const Config& wanted) {
  Reloaded reloaded{running, {}, {}};
  const auto take_over = [&](const Option& option, auto member) {
    if (running.*member == wanted.*member) return;
    (option.reloads ? reloaded.changed : reloaded.needs_restart).push_back("--" + std::string(option.name));
    if (option.reloads) reloaded.config.*member = wanted.*member;
  };
  for (const Option& option : kOptions) {
    std::visit(Overloaded{
                   [&](const Option::Number& number) { take_over(option, number.field); },
                   [&](const Option::Time& time) { take_over(option, time.field); },
                   [&](const Option::Choice& choice) { take_over(option, choice.field); },
                   [&](auto member) { take_over(option, member); },
               },
               option.field);
  }
  return reloaded;
}

std::string help_text() {
  std::string text =
      "usage: chatterd [options]\n\n"
      "Serves the course's chat clients over HTTPS: keeps conversations in PostgreSQL and relays Ollama's\n"
      "answers as Server-Sent Events. Each option --some-name is also the variable CHATTERD_SOME_NAME, of\n"
      "the environment or of --env-file; the option wins. SIGHUP takes over new values of those with (*).\n\n";
  for (const Option& option : kOptions) {
    std::string head = "  --" + std::string(option.name);
    if (!option.value_name.empty()) head += " " + std::string(option.value_name);
    text += head + std::string(head.size() < 28 ? 28 - head.size() : 1, ' ') + std::string(option.help);
    if (const std::string value = option.default_text(); !value.empty()) text += " (" + value + ")";
    text += option.reloads ? " (*)\n" : "\n";
  }
  return text;
}
