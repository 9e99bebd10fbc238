// Child processes of the tests: chatterd as a server, chatterd as a command that ends by itself.
#pragma once

#include <sys/types.h>

#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "tests/harness/client.hpp"

namespace harness {

using Arguments = std::vector<std::string>;
using Environment = std::vector<std::pair<std::string, std::string>>;

// The binary under test: CHATTERD_BIN, or ./chatterd.
std::string chatterd_binary();

// A running child. It gets the environment of the tests without what would configure chatterd or libpq
// (CHATTERD_*, PG*), with `environment` added, and an empty standard input. It is killed if it still runs
// when its owner goes. Its output is collected by threads of this class; methods are for one thread.
class Process {
 public:
  // With `passed_fd` it has that as its descriptor 3 and its own number in LISTEN_PID, as systemd does.
  Process(const std::string& program, const Arguments& arguments, const Environment& environment = {}, int passed_fd = -1);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] std::string out() const;
  [[nodiscard]] std::string err() const;
  void signal(int number) const;
  // The exit status, 128 + n for death by signal n; nothing while it runs. After the end all output is there.
  std::optional<int> wait_exit(int patience_ms);

 private:
  void collect(int fd, std::string& into);
  pid_t pid_ = -1;
  std::optional<int> status_;
  Fd out_pipe_, err_pipe_;
  mutable std::mutex mutex_;
  std::string out_, err_;  // guarded by mutex_
  std::thread out_reader_, err_reader_;
};

// chatterd as a server.
class Chatterd : public Process {
 public:
  explicit Chatterd(const Arguments& arguments, const Environment& environment = {}, int passed_fd = -1)
      : Process(chatterd_binary(), arguments, environment, passed_fd) {}

  // Waits for the line that ends in the address and returns 127.0.0.1 with that port.
  // Throws with the log when it ends before or says nothing in time.
  Endpoint wait_until_ready();
  // SIGTERM and the exit status; kills and returns nothing when it does not end in time.
  std::optional<int> stop(int patience_ms = kPatienceMs);
  // The log from this offset on; the offset that comes next is the log's size.
  [[nodiscard]] std::string log_from(size_t offset) const;
  // The first log line from the offset on that holds all of these; empty when it does not come in time.
  std::string wait_for_log(const std::vector<std::string>& parts, size_t offset = 0,
                                         int patience_ms = kPatienceMs) const;
};

// Lines of a log that should not be there: reports of sanitizers, and errors unless they are expected.
std::string unexpected_lines(std::string_view log, bool errors_expected);

struct Finished {
  int status = -1;
  std::string out;
  std::string err;
  [[nodiscard]] std::string text() const;  // for failure messages
};

// Runs chatterd to its end; kills it after the patience and then reports status -1.
Finished run_chatterd(const Arguments& arguments, const Environment& environment = {},
                      int patience_ms = kPatienceMs, int passed_fd = -1);

// The lines of a text without their ends.
std::vector<std::string> lines_of(std::string_view text);

}  // namespace harness
