// The log: one line an event on standard error, as key=value pairs.
//
// Lines hold what happened, never what was said: no message's text, no prompt, no answer.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

enum class LogLevel { debug, info, warning, error };

/// One line of the log, written by a single write(2) when it goes out of scope, so that lines of
/// several threads never mix. Any thread. A value with anything but plain characters is quoted, and
/// control bytes in it are escaped: a line can't be forged from outside.
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
  std::string line_;
};
