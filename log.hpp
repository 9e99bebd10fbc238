// The log: one line an event on standard error, as key=value pairs or as JSON.
//
// Lines hold what happened, never what was said: no message's text, no prompt, no answer. Each has `level`
// and `event`, and `id` where it belongs to a request: the X-Request-Id of its response.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

enum class LogLevel { debug, info, warning, error };
enum class LogFormat { text, json };

/// "debug", "info", "warning" or "error"; nothing for any other name.
std::optional<LogLevel> log_level_of(std::string_view name);
/// "text" or "json"; nothing for any other name.
std::optional<LogFormat> log_format_of(std::string_view name);

/// Lines below the level are left out from now on (before the first call: below info). Any thread, at any time.
void set_log_level(LogLevel level);
/// Before other threads are started. Also finds out whether standard error is systemd's journal.
void set_log_format(LogFormat format);

/// Where standard error is systemd's journal, the prefix that gives a line its priority, such as "<4>"
/// (sd-daemon(3)); elsewhere nothing. The journal takes it off again.
std::string_view journal_prefix(LogLevel level);

/// One line of the log, written by a single write(2) when it goes out of scope, so that lines of
/// several threads never mix. Any thread. One below the log's level does nothing at all.
///
/// As text a value with anything but plain characters is quoted, and control bytes in it are escaped: a
/// line can't be forged from outside. It begins with the time, but not in the journal, which has its own.
/// As JSON it is an object, valid UTF-8 whatever bytes the values have, with numbers as numbers.
///
///     LogLine(LogLevel::info, "database_back").add("host", host);
class LogLine {
 public:
  LogLine(LogLevel level, std::string_view event);
  LogLine(const LogLine&) = delete;
  LogLine& operator=(const LogLine&) = delete;
  ~LogLine();

  LogLine& add(std::string_view key, std::string_view value);
  LogLine& add(std::string_view key, const char* value) { return add(key, std::string_view(value)); }
  LogLine& add(std::string_view key, double value);  ///< with one decimal
  template <std::integral T>
  LogLine& add(std::string_view key, T value) {
    return add_integer(key, static_cast<std::int64_t>(value));
  }

 private:
  LogLine& add_integer(std::string_view key, std::int64_t value);
  void add_key(std::string_view key);

  const bool wanted_;
  std::string line_;
};
