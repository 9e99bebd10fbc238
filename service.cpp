#include "service.hpp"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <sstream>

namespace {

constexpr auto kStatusPause = std::chrono::seconds(1);
// A manager whose queue is full is given this long; then the message is dropped.
constexpr timeval kSendMax{2, 0};
// The first passed descriptor (sd_listen_fds(3), SD_LISTEN_FDS_START).
constexpr int kFirstPassedFd = 3;
constexpr std::string_view kCpuLatencyName = "cpu_dma_latency";

// A variable's value, "" for none; it is then unset.
std::string take_variable(const char* name) {
  const char* value = std::getenv(name);
  std::string text = value == nullptr ? "" : value;
  ::unsetenv(name);
  return text;
}

template <class Number>
std::optional<Number> parse_whole(const std::string& text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

int socket_option(int fd, int option) {
  int value = -1;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, option, &value, &length) == 0 ? value : -1;
}

bool is_writable(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
}

bool listens_on_tcp(int fd) {
  const int family = socket_option(fd, SO_DOMAIN);
  return (family == AF_INET || family == AF_INET6) && socket_option(fd, SO_TYPE) == SOCK_STREAM && socket_option(fd, SO_ACCEPTCONN) == 1;
}

}  // namespace

ServiceManager::ServiceManager() : address_(take_variable("NOTIFY_SOCKET")) {
  const auto watchdog_us = parse_whole<long long>(take_variable("WATCHDOG_USEC"));
  const std::string watchdog_pid = take_variable("WATCHDOG_PID");
  const bool usable = address_.starts_with('/') || address_.starts_with('@');
  if (!usable || address_.size() >= sizeof(sockaddr_un::sun_path)) address_.clear();
  if (address_.empty()) return;
  if (address_.front() == '@') address_.front() = '\0';
  socket_.reset(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &kSendMax, sizeof kSendMax);
  const bool for_us = watchdog_pid.empty() || parse_whole<pid_t>(watchdog_pid) == ::getpid();
  if (for_us && watchdog_us && *watchdog_us >= 1000) watchdog_ = std::chrono::duration_cast<milliseconds>(std::chrono::microseconds(*watchdog_us));
}

void ServiceManager::send(std::string_view message) {
  if (address_.empty()) return;
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  address_.copy(to.sun_path, address_.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size());
  // A manager that can't be told is no reason not to serve.
  [[maybe_unused]] const ssize_t sent =
      ::sendto(socket_.get(), message.data(), message.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&to), length);
}

void ServiceManager::ready() { send("READY=1"); }

void ServiceManager::reloading() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  send("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(now.tv_sec * 1'000'000 + now.tv_nsec / 1000));
}

void ServiceManager::stopping(milliseconds at_most) {
  send("STOPPING=1\nEXTEND_TIMEOUT_USEC=" + std::to_string(std::chrono::microseconds(at_most).count()));
}

void ServiceManager::alive() { send("WATCHDOG=1"); }

void ServiceManager::set_status(const std::string& status) {
  if (status == status_ || Clock::now() < status_sent_at_ + kStatusPause) return;
  status_ = status;
  status_sent_at_ = Clock::now();
  send("STATUS=" + status);
}

Result<Passed, StartProblem> take_passed() {
  const auto pid = parse_whole<pid_t>(take_variable("LISTEN_PID"));
  const std::string count_text = take_variable("LISTEN_FDS");
  std::istringstream names(take_variable("LISTEN_FDNAMES"));
  Passed passed;
  if (pid != ::getpid() || count_text.empty()) return passed;  // for another process
  const auto wrong = [](const std::string& what) { return StartProblem{true, "LISTEN_FDS: " + what}; };
  const auto count = parse_whole<int>(count_text);
  if (!count || *count < 0) return wrong("it is not a number of descriptors.");
  for (int i = 0; i < *count; ++i) {
    const int fd = kFirstPassedFd + i;
    std::string name;
    std::getline(names, name, ':');
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (name == kCpuLatencyName) {
      if (!is_writable(fd)) return wrong(name + " can't be written to: give OpenFile= without read-only.");
      passed.cpu_latency.reset(fd);
      continue;
    }
    if (passed.socket) return wrong("several sockets were passed, and chatterd serves one: give chatterd.socket a single ListenStream=.");
    if (!listens_on_tcp(fd)) {
      return wrong("what was passed is not a listening TCP socket: give chatterd.socket ListenStream= with a port, and Accept=no.");
    }
    passed.socket.reset(fd);
    ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  }
  return passed;
}
