#include "log.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <ctime>

namespace {

std::string_view name_of(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return "debug";
    case LogLevel::info: return "info";
    case LogLevel::warning: return "warning";
    case LogLevel::error: return "error";
  }
  return "error";
}

void append_time(std::string& out) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  const std::time_t seconds = static_cast<std::time_t>(ms / 1000);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[40];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  out.append(text, length);
  std::snprintf(text, sizeof text, ".%03dZ", static_cast<int>(ms % 1000));
  out += text;
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

LogLine::LogLine(LogLevel level, std::string_view event) {
  line_.reserve(256);
  append_time(line_);
  line_.append(" level=").append(name_of(level));
  add("event", event);
}

LogLine::~LogLine() {
  line_ += '\n';
  // A log that can't be written is no reason to fail a request.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line_.data(), line_.size());
}

LogLine& LogLine::add(std::string_view key, std::string_view value) {
  line_.append(" ").append(key).append("=");
  if (is_plain(value)) {
    line_ += value;
  } else {
    append_quoted(line_, value);
  }
  return *this;
}

LogLine& LogLine::add(std::string_view key, double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.1f", value);
  return add(key, std::string_view(text));
}

LogLine& LogLine::add_integer(std::string_view key, std::int64_t value) {
  return add(key, std::string_view(std::to_string(value)));
}
