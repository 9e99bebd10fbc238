#include "log.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <system_error>

#include "text.hpp"

namespace {

struct LevelName {
  std::string_view name;
  std::string_view prefix;  // syslog's priority: journald reads it at a line's start
};
// In the order of LogLevel.
constexpr LevelName kLevels[] = {{"debug", "<7>"}, {"info", "<6>"}, {"warning", "<4>"}, {"error", "<3>"}};

constexpr size_t kPrefixBytes = 3;

std::atomic<LogLevel> least_level{LogLevel::info};
// Set before threads are started:
LogFormat log_format = LogFormat::text;
bool in_journal = false;

// systemd says which file the journal is; standard error may be another by now (systemd.exec(5), JOURNAL_STREAM).
bool stderr_is_journal() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat file {};
  if (stream == nullptr || ::fstat(STDERR_FILENO, &file) != 0) return false;
  return stream == std::to_string(file.st_dev) + ":" + std::to_string(file.st_ino);
}

void append_time(std::string& out) {
  using namespace std::chrono;
  const auto since_2000 = system_clock::now() - sys_days(year(2000) / January / 1);
  const std::string time = format_timestamp(duration_cast<microseconds>(since_2000).count());
  out.append(time, 0, time.find('.') + 4) += 'Z';  // milliseconds will do
}

bool is_plain(std::string_view value) {
  for (const char c : value) {
    if (c <= ' ' || c == '"' || c == '\\' || c == '=' || static_cast<unsigned char>(c) >= 0x7f) return false;
  }
  return !value.empty();
}

// Bytes outside ASCII are escaped too: a terminal that reads the log may act on them.
void append_quoted(std::string& out, std::string_view value) {
  out += '"';
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte >= 0x7f) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", byte);
      out += escaped;
    } else {
      out += c;
    }
  }
  out += '"';
}

}  // namespace

std::optional<LogLevel> log_level_of(std::string_view name) {
  for (const LogLevel level : {LogLevel::debug, LogLevel::info, LogLevel::warning, LogLevel::error}) {
    if (kLevels[static_cast<size_t>(level)].name == name) return level;
  }
  return std::nullopt;
}

std::optional<LogFormat> log_format_of(std::string_view name) {
  if (name == "text") return LogFormat::text;
  if (name == "json") return LogFormat::json;
  return std::nullopt;
}

void set_log_level(LogLevel level) { least_level.store(level, std::memory_order_relaxed); }

void set_log_format(LogFormat format) {
  log_format = format;
  in_journal = stderr_is_journal();
}

std::string_view journal_prefix(LogLevel level) { return in_journal ? kLevels[static_cast<size_t>(level)].prefix : ""; }

LogLine::LogLine(LogLevel level, std::string_view event) : wanted_(level >= least_level.load(std::memory_order_relaxed)) {
  if (!wanted_) return;
  line_.reserve(256);
  line_ = journal_prefix(level);
  if (log_format == LogFormat::json) {
    line_ += "{\"time\":\"";
    append_time(line_);
    line_ += '"';
  } else if (!in_journal) {
    append_time(line_);
  }
  add("level", kLevels[static_cast<size_t>(level)].name).add("event", event);
}

LogLine::~LogLine() {
  if (!wanted_) return;
  line_ += log_format == LogFormat::json ? "}\n" : "\n";
  // A log that can't be written is no reason to fail a request.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line_.data(), line_.size());
}

void LogLine::add_key(std::string_view key) {
  if (log_format == LogFormat::json) {
    line_.append(",\"").append(key).append("\":");  // keys are ours: nothing to escape
  } else {
    // A line in the journal begins with its first key, right behind the priority.
    if (line_.size() > (in_journal ? kPrefixBytes : 0)) line_ += ' ';
    line_.append(key).append("=");
  }
}

LogLine& LogLine::add(std::string_view key, std::string_view value) {
  if (!wanted_) return *this;
  add_key(key);
  if (log_format == LogFormat::json) {
    append_json_string(line_, value);
  } else if (is_plain(value)) {
    line_ += value;
  } else {
    append_quoted(line_, value);
  }
  return *this;
}

LogLine& LogLine::add(std::string_view key, double value) {
  if (!wanted_) return *this;
  add_key(key);
  char text[64];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value, std::chars_format::fixed, 1);
  // JSON has no other word for what is no number.
  line_ += std::isfinite(value) && error == std::errc() ? std::string_view(text, end) : "null";
  return *this;
}

LogLine& LogLine::add_integer(std::string_view key, std::int64_t value) {
  if (!wanted_) return *this;
  add_key(key);
  line_ += std::to_string(value);
  return *this;
}
