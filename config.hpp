// chatterd's configuration: one table of options from which command line, environment, --help and the
// README's table are made.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "env_file.hpp"
#include "result.hpp"

/// Every option's value; the initialisers are the defaults. Made by parse_config(), then only read, by any
/// thread. The table in config.cpp says what each is for.
struct Config {
  using Seconds = std::chrono::milliseconds;  // given in seconds, fractions allowed

  std::string env_file;
  std::string host;
  size_t port = 443;
  std::string cert = "/home/ubuntu/reactive/chatterd.crt";
  std::string key = "/home/ubuntu/reactive/chatterd.key";
  bool http = false;

  std::string db;
  size_t db_pool = 8;
  Seconds db_timeout{2500};
  Seconds store_retry{30'000};

  std::string ollama = "http://localhost:11434";
  Seconds ollama_grace{10'000};
  Seconds ollama_timeout{300'000};
  Seconds reply_seconds{3'600'000};
  size_t max_line = size_t{1} << 20;
  size_t max_reply = size_t{64} << 20;
  bool keep_whitespace = false;

  size_t max_body = size_t{4} << 20;
  size_t body_memory = size_t{256} << 20;
  size_t max_history = size_t{64} << 20;
  size_t max_streams = 1024;
  size_t streams_per_client = 0;
  size_t rate = 0;
  std::string api_keys;
  std::string user;
  std::string state_dir;
  size_t max_connections = 8192;
  size_t threads = 0;
  Seconds header_timeout{10'000};
  Seconds body_timeout{30'000};
  Seconds idle_timeout{60'000};
  Seconds write_timeout{10'000};
  Seconds turn_wait{30'000};
  Seconds ping_interval{15'000};
  Seconds drain{10'000};

  std::string admin;
  std::string log_level = "info";
  std::string log_format = "text";

  bool check = false;
  bool print_schema = false;
  bool version = false;
  bool help = false;

  /// The pool's largest size: --threads, or one for each stream and some for short requests, so that
  /// streams can't starve them.
  size_t threads_max() const { return threads != 0 ? threads : max_streams + 64; }
  /// Where --max-body was raised, one of that size must fit.
  size_t body_memory_max() const { return std::max(body_memory, max_body); }
};

struct Option {
  struct Number {
    size_t Config::*field;
    size_t least, most;
  };
  struct Time {
    Config::Seconds Config::*field;
  };
  struct Choice {
    std::string Config::*field;
    std::string_view values;  // with ", " between
  };
  using Field = std::variant<std::string Config::*, bool Config::*, Number, Time, Choice>;

  std::string_view name;        ///< without the dashes
  std::string_view value_name;  ///< what --help shows for the value; "" for a switch
  Field field;
  std::string_view help;
  bool reloads = false;  ///< a reload takes its new value over; otherwise that needs a restart

  /// The environment variable of the same meaning: CHATTERD_SOME_NAME.
  std::string variable() const;
  /// The default as one would write it; "" for none.
  std::string default_text() const;
};

std::span<const Option> options();

/// What is wrong with an option, as one line that names it.
struct ConfigError {
  std::string line;
};

/// `environment(name)` returns nullptr for an unset variable.
using Environment = const char* (*)(const char*);

/// Reads environment, file and arguments (without the program's name): a flag wins over the file's variable,
/// and that over the environment's; an empty one counts as unset. A variable of the file that looks like an
/// option's and is none is an error.
Result<Config, ConfigError> parse_config(const std::vector<std::string>& arguments, Environment environment, const EnvFile& file = {});

/// The file that --env-file or its variable names, with no variables when there is none. The only reader of it.
Result<EnvFile, ConfigError> load_env_file(const std::vector<std::string>& arguments, Environment environment);

/// What a reload makes of a running configuration.
struct Reloaded {
  Config config;                           ///< the running one with those new values that a reload may change
  std::vector<std::string> changed;        ///< their options, with dashes
  std::vector<std::string> needs_restart;  ///< options whose new values were left out
};
Reloaded reload_config(const Config& running, const Config& wanted);

std::string help_text();
