#include "tests/harness/process.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace harness {
namespace {

std::vector<std::string> environment_for_child(const Environment& added) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    if (text.rfind("CHATTERD_", 0) != 0 && text.rfind("PG", 0) != 0) all.emplace_back(text);
  }
  for (const auto& [name, value] : added) all.push_back(name + "=" + value);
  return all;
}

std::vector<char*> pointers_to(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// LISTEN_PID with room for the child's number, which is not known before the fork.
constexpr std::string_view kListenPid = "LISTEN_PID=";
constexpr size_t kPidDigits = 10;

void pass_socket(int fd, char** envp) {
  if (fd == 3) ::fcntl(fd, F_SETFD, 0);
  else ::dup2(fd, 3);
  for (; *envp != nullptr; ++envp) {
    if (std::strncmp(*envp, kListenPid.data(), kListenPid.size()) != 0) continue;
    char* digit = *envp + kListenPid.size() + kPidDigits;
    for (pid_t pid = ::getpid(); digit != *envp + kListenPid.size(); pid /= 10) *--digit = static_cast<char>('0' + pid % 10);
  }
}

// Between fork and exec in a program with threads: system calls only.
[[noreturn]] void become(int out, int err, char** argv, char** envp, int passed_fd) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::signal(SIGPIPE, SIG_DFL);  // ignored by the test programs, and that would be inherited
  const int in = ::open("/dev/null", O_RDONLY);
  ::dup2(in, 0);
  ::dup2(out, 1);
  ::dup2(err, 2);
  if (passed_fd >= 0) pass_socket(passed_fd, envp);
  ::close_range(passed_fd >= 0 ? 4 : 3, ~0U, 0);  // also what was inherited from who runs the tests
  ::execve(argv[0], argv, envp);
  ::_exit(127);
}

}  // namespace

std::string chatterd_binary() {
  const char* path = std::getenv("CHATTERD_BIN");
  return path != nullptr && *path != '\0' ? path : "./chatterd";
}

Process::Process(const std::string& program, const Arguments& arguments, const Environment& environment, int passed_fd) {
  int out[2], err[2];
  if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
  out_pipe_ = Fd(out[0]);
  err_pipe_ = Fd(err[0]);
  const Fd out_end(out[1]), err_end(err[1]);
  std::vector<std::string> argument_texts{program};
  argument_texts.insert(argument_texts.end(), arguments.begin(), arguments.end());
  std::vector<std::string> environment_texts = environment_for_child(environment);
  if (passed_fd >= 0) environment_texts.push_back(std::string(kListenPid) + std::string(kPidDigits, '0'));
  const std::vector<char*> argv = pointers_to(argument_texts);
  const std::vector<char*> envp = pointers_to(environment_texts);
  pid_ = ::fork();
  if (pid_ < 0) throw std::runtime_error("fork");
  if (pid_ == 0) become(out_end.get(), err_end.get(), const_cast<char**>(argv.data()), const_cast<char**>(envp.data()), passed_fd);
  out_reader_ = std::thread([this] { collect(out_pipe_.get(), out_); });
  err_reader_ = std::thread([this] { collect(err_pipe_.get(), err_); });
}

Process::~Process() {
  if (!status_) {
    signal(SIGKILL);
    wait_exit(kPatienceMs);
  }
  if (out_reader_.joinable()) out_reader_.join();
  if (err_reader_.joinable()) err_reader_.join();
}

void Process::collect(int fd, std::string& into) {
  char bytes[4096];
  for (;;) {
    const ssize_t got = ::read(fd, bytes, sizeof bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return;
    const std::lock_guard lock(mutex_);
    into.append(bytes, static_cast<size_t>(got));
  }
}

std::string Process::out() const {
  const std::lock_guard lock(mutex_);
  return out_;
}

std::string Process::err() const {
  const std::lock_guard lock(mutex_);
  return err_;
}

void Process::signal(int number) const {
  if (!status_) ::kill(pid_, number);
}

std::optional<int> Process::wait_exit(int patience_ms) {
  if (status_) return status_;
  int raw = 0;
  if (!eventually([&] { return ::waitpid(pid_, &raw, WNOHANG) == pid_; }, patience_ms)) return std::nullopt;
  status_ = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128 + WTERMSIG(raw);
  out_reader_.join();
  err_reader_.join();
  return status_;
}

Endpoint Chatterd::wait_until_ready() {
  Endpoint endpoint;
  const auto find_line = [&] {
    for (const std::string& line : lines_of(err())) {
      const size_t at = line.find("listening on http");
      if (at == std::string::npos) continue;
      endpoint.tls = line.compare(at, 18, "listening on https") == 0;
      const char* end = line.data() + line.size();
      const char* start = line.data() + line.rfind(':') + 1;
      const auto parsed = std::from_chars(start, end, endpoint.port);
      if (parsed.ec != std::errc() || parsed.ptr != end) {
        throw std::runtime_error("the ready line does not end in an address: " + line);
      }
      return true;
    }
    return false;
  };
  // Under a sanitizer, on a busy machine, the start alone can take seconds.
  if (!eventually([&] { return find_line() || wait_exit(0).has_value(); }) || endpoint.port == 0) {
    throw std::runtime_error("chatterd was not ready; it said:\n" + err());
  }
  return endpoint;
}

std::optional<int> Chatterd::stop(int patience_ms) {
  signal(SIGTERM);
  return wait_exit(patience_ms);
}

std::string Chatterd::log_from(size_t offset) const {
  const std::string all = err();
  return all.substr(std::min(offset, all.size()));
}

std::string Chatterd::wait_for_log(const std::vector<std::string>& parts, size_t offset, int patience_ms) const {
  std::string found;
  eventually(
      [&] {
        for (const std::string& line : lines_of(log_from(offset))) {
          const bool all = std::all_of(parts.begin(), parts.end(), [&](const std::string& part) {
            return line.find(part) != std::string::npos;
          });
          if (all) found = line;
          if (all) return true;
        }
        return false;
      },
      patience_ms);
  return found;
}

std::string unexpected_lines(std::string_view log, bool errors_expected) {
  std::string found;
  for (const std::string& line : lines_of(log)) {
    bool bad = !errors_expected && line.find("level=error") != std::string::npos;
    for (const char* mark : {"ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error",
                             "WARNING: ThreadSanitizer", "terminate called"}) {
      bad = bad || line.find(mark) != std::string::npos;
    }
    if (bad) found += line + "\n";
  }
  return found;
}

std::string Finished::text() const {
  return "exit status " + std::to_string(status) + "\nstdout:\n" + out + "\nstderr:\n" + err;
}

Finished run_chatterd(const Arguments& arguments, const Environment& environment, int patience_ms, int passed_fd) {
  Process process(chatterd_binary(), arguments, environment, passed_fd);
  Finished finished;
  const std::optional<int> status = process.wait_exit(patience_ms);
  if (!status) {
    process.signal(SIGKILL);
    process.wait_exit(kPatienceMs);
  }
  finished.status = status.value_or(-1);
  finished.out = process.out();
  finished.err = process.err();
  return finished;
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return lines;
}

}  // namespace harness
