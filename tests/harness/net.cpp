#include "tests/harness/net.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <stdexcept>
#include <thread>

namespace harness {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what + ": " + std::strerror(errno));
}

bool wait_for_events(int fd, short events, int timeout_ms) {
  pollfd entry{fd, events, 0};
  const Deadline deadline(timeout_ms);
  for (;;) {
    const int ready = ::poll(&entry, 1, deadline.left_ms());
    if (ready > 0) return true;
    if (ready == 0) return false;
    if (errno != EINTR) fail("poll");
  }
}

struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;
};

Address numeric_address(const std::string& text, int port) {
  Address address;
  sockaddr_in v4{};
  sockaddr_in6 v6{};
  if (::inet_pton(AF_INET, text.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(port));
    std::memcpy(&address.storage, &v4, sizeof v4);
    address.length = sizeof v4;
  } else if (::inet_pton(AF_INET6, text.c_str(), &v6.sin6_addr) == 1) {
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(static_cast<uint16_t>(port));
    std::memcpy(&address.storage, &v6, sizeof v6);
    address.length = sizeof v6;
  } else {
    throw std::runtime_error("not a numeric address: " + text);
  }
  return address;
}

}  // namespace

int Deadline::left_ms() const {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(at_ - Clock::now()).count();
  return left > 0 ? static_cast<int>(left) : 0;
}

double ms_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void Fd::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void Fd::close_with_rst() {
  const linger at_once{1, 0};
  if (fd_ >= 0) ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  close();
}

Fd bind_loopback(int port) {
  Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.is_open()) fail("socket");
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const Address address = numeric_address("127.0.0.1", port);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.length) != 0) {
    fail("cannot bind 127.0.0.1:" + std::to_string(port));
  }
  return fd;
}

int free_port() {
  // Below the range of /proc/sys/net/ipv4/ip_local_port_range.
  std::random_device random;
  for (int tries = 0; tries < 100; ++tries) {
    const int port = 20000 + static_cast<int>(random() % 12000);
    try {
      const Fd probe = bind_loopback(port);
      return port;
    } catch (const std::runtime_error&) {
      // Taken: the next one.
    }
  }
  throw std::runtime_error("no free port");
}

void start_listening(const Fd& bound) {
  if (::listen(bound.get(), 1024) != 0) fail("listen");
}

Fd listen_on_loopback(int port) {
  Fd fd = bind_loopback(port);
  start_listening(fd);
  return fd;
}

int port_of(const Fd& bound) {
  sockaddr_in address{};
  socklen_t length = sizeof address;
  if (::getsockname(bound.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) fail("getsockname");
  return ntohs(address.sin_port);
}

std::string url_of(int port) { return "http://127.0.0.1:" + std::to_string(port); }

std::string url_of(const Fd& bound) { return url_of(port_of(bound)); }

Fd try_connect(const std::string& text, int port, const Deadline& deadline) {
  const Address address = numeric_address(text, port);
  Fd fd(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.is_open()) fail("socket");
  const int on = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.length) != 0) {
    if (errno != EINPROGRESS || !wait_writable(fd.get(), deadline.left_ms())) return Fd();
    int error = 0;
    socklen_t length = sizeof error;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return Fd();
  }
  ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) & ~O_NONBLOCK);
  return fd;
}

Fd connect_to(const std::string& address, int port, const Deadline& deadline) {
  Fd fd = try_connect(address, port, deadline);
  if (!fd.is_open()) throw std::runtime_error("cannot connect to " + address + " port " + std::to_string(port));
  return fd;
}

bool wait_readable(int fd, int timeout_ms) { return wait_for_events(fd, POLLIN, timeout_ms); }
bool wait_writable(int fd, int timeout_ms) { return wait_for_events(fd, POLLOUT, timeout_ms); }
bool peer_left(int fd) { return wait_for_events(fd, POLLRDHUP, 0); }

bool send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

bool eventually(const std::function<bool()>& condition, int patience_ms) {
  const Deadline deadline(patience_ms);
  while (!condition()) {
    if (deadline.passed()) return condition();
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
  return true;
}

std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) {
    text.remove_suffix(1);
  }
  return text;
}

}  // namespace harness
