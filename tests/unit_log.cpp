// The log's lines, as docs/operations.md ("Logs") describes them.
#include "tests/catch.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "log.hpp"

namespace {

// Standard error as a file for as long as this lives; then the log is as it was.
class Captured {
 public:
  explicit Captured(LogFormat format, bool journal = false) : file_(std::tmpfile()), saved_(::dup(STDERR_FILENO)) {
    ::dup2(::fileno(file_), STDERR_FILENO);
    struct stat status {};
    ::fstat(STDERR_FILENO, &status);
    const std::string stream = std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino + (journal ? 0 : 1));
    ::setenv("JOURNAL_STREAM", stream.c_str(), 1);
    set_log_format(format);
  }
  ~Captured() {
    ::dup2(saved_, STDERR_FILENO);
    ::close(saved_);
    std::fclose(file_);
    ::unsetenv("JOURNAL_STREAM");
    set_log_format(LogFormat::text);
    set_log_level(LogLevel::info);
  }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;

  std::string text() const {
    std::string all(static_cast<size_t>(::lseek(::fileno(file_), 0, SEEK_END)), '\0');
    const ssize_t count = ::pread(::fileno(file_), all.data(), all.size(), 0);
    all.resize(static_cast<size_t>(count));
    return all;
  }

 private:
  std::FILE* file_;
  int saved_;
};

const std::string kHostile("a b=\"c\"\n\r\x01\x1b[31m\\ \xff\xc3\xa9 \xe2\x28\xa1");

}  // namespace

TEST_CASE("a text line is one line with a time, whatever its values hold", "[log]") {
  const Captured log(LogFormat::text);
  LogLine(LogLevel::warning, "request").add("path", kHostile).add("status", 404).add("ms", 1.25).add("plain", "/x>").add("next", "y");
  const std::string text = log.text();
  CHECK(text.substr(4, 1) == "-");
  CHECK(text.find("Z level=warning event=request path=\"a b=\\\"c\\\"\\x0a\\x0d\\x01\\x1b[31m\\\\ \\xff\\xc3\\xa9") != std::string::npos);
  CHECK(text.find(" status=404 ms=1.2 plain=/x> next=y\n") != std::string::npos);
  CHECK(text.find('\n') == text.size() - 1);
}

TEST_CASE("a JSON line is one object in valid UTF-8, with numbers as numbers", "[log]") {
  const Captured log(LogFormat::json);
  LogLine(LogLevel::error, "request").add("path", kHostile).add("status", 404).add("ms", 1.25).add("odd", std::numeric_limits<double>::infinity());
  LogLine(LogLevel::info, "stopped");
  const std::string text = log.text();
  const size_t end = text.find('\n');
  const auto first = nlohmann::json::parse(text.substr(0, end));
  CHECK(first["level"] == "error");
  CHECK(first["event"] == "request");
  CHECK(first["status"] == 404);
  CHECK(first["ms"].is_number());
  CHECK(first["odd"].is_null());
  CHECK(first["path"].get<std::string>().find("a b=\"c\"\n\r\x01\x1b[31m\\ \xef\xbf\xbd\xc3\xa9") == 0);
  CHECK(first["time"].get<std::string>().size() == 24);
  CHECK(nlohmann::json::parse(text.substr(end + 1))["event"] == "stopped");
}

TEST_CASE("in systemd's journal a line begins with its priority and has no time, as sd-daemon(3) says", "[log]") {
  const Captured log(LogFormat::text, true);
  set_log_level(LogLevel::debug);
  LogLine(LogLevel::debug, "a").add("k", 1);
  LogLine(LogLevel::info, "b");
  LogLine(LogLevel::warning, "c");
  LogLine(LogLevel::error, "d");
  CHECK(log.text() == "<7>level=debug event=a k=1\n<6>level=info event=b\n<4>level=warning event=c\n<3>level=error event=d\n");
  CHECK(journal_prefix(LogLevel::error) == "<3>");
}

TEST_CASE("JSON in the journal is the object behind the priority, which the journal takes off", "[log]") {
  const Captured log(LogFormat::json, true);
  LogLine(LogLevel::warning, "c");
  CHECK(log.text().rfind("<4>{\"time\":\"", 0) == 0);
  CHECK(nlohmann::json::parse(log.text().substr(3))["level"] == "warning");
}

TEST_CASE("without the journal there is no priority, also where JOURNAL_STREAM names another file", "[log]") {
  const Captured log(LogFormat::text, false);
  LogLine(LogLevel::error, "d");
  CHECK(log.text().find('<') == std::string::npos);
  CHECK(journal_prefix(LogLevel::error).empty());
}

TEST_CASE("a line below the level is left out, and the level may change at any time from any thread", "[log]") {
  const Captured log(LogFormat::text);
  LogLine(LogLevel::debug, "hidden").add("k", "v").add("n", 1).add("d", 1.0);
  set_log_level(LogLevel::error);
  LogLine(LogLevel::warning, "hidden");
  std::thread([] { set_log_level(LogLevel::debug); }).join();
  LogLine(LogLevel::debug, "shown");
  CHECK(log.text().find("hidden") == std::string::npos);
  CHECK(log.text().find("event=shown") != std::string::npos);
}

TEST_CASE("levels and formats have names, and no others", "[log]") {
  CHECK(log_level_of("debug") == LogLevel::debug);
  CHECK(log_level_of("error") == LogLevel::error);
  CHECK_FALSE(log_level_of("Info").has_value());
  CHECK_FALSE(log_level_of("").has_value());
  CHECK(log_format_of("json") == LogFormat::json);
  CHECK_FALSE(log_format_of("xml").has_value());
}
