// Sockets, deadlines and polling for the test harness. Everything here reports an unexpected failure by
// throwing std::runtime_error with a sentence; nothing depends on the test framework.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace harness {

using Clock = std::chrono::steady_clock;

// The patience of a test: long enough for a sanitizer build on a busy machine, and only ever used up by
// a test that fails.
constexpr int kPatienceMs = 15000;

// A point in time to which a wait may last.
class Deadline {
 public:
  explicit Deadline(int after_ms) : at_(Clock::now() + std::chrono::milliseconds(after_ms)) {}
  [[nodiscard]] bool passed() const { return Clock::now() >= at_; }
  [[nodiscard]] int left_ms() const;  // 0 once it has passed

 private:
  Clock::time_point at_;
};

[[nodiscard]] double ms_between(Clock::time_point from, Clock::time_point to);

// Owns one file descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept;
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { close(); }
  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] bool is_open() const { return fd_ >= 0; }
  void close();
  void close_with_rst();  // the peer sees "connection reset", unsent bytes are dropped

 private:
  int fd_ = -1;
};

// A socket on 127.0.0.1 that holds `port` (0: a free one) without listening yet: connecting is refused. A test keeps it
// for as long as nobody may answer there: the kernel gives a free port to any other test at once.
Fd bind_loopback(int port);
// A port that nobody holds now and that the kernel gives to no one who asks for a free one.
int free_port();
void start_listening(const Fd& bound);
Fd listen_on_loopback(int port);
[[nodiscard]] int port_of(const Fd& bound);
[[nodiscard]] std::string url_of(int port);  // http://127.0.0.1:PORT
[[nodiscard]] std::string url_of(const Fd& bound);

// Connects by TCP to a numeric IPv4 or IPv6 address.
Fd connect_to(const std::string& address, int port, const Deadline& deadline);
// The same without throwing: not open when refused or too late.
Fd try_connect(const std::string& address, int port, const Deadline& deadline);

// False when nothing came in time. True also for an end of file or an error, which the next read shows.
bool wait_readable(int fd, int timeout_ms);
bool wait_writable(int fd, int timeout_ms);
// True once the peer has closed or reset; bytes not yet read do not hide it.
bool peer_left(int fd);
// False when the peer no longer takes bytes.
bool send_all(int fd, std::string_view bytes);

// Asks again every few milliseconds until `condition` holds; false when it never did.
bool eventually(const std::function<bool()>& condition, int patience_ms = kPatienceMs);

[[nodiscard]] std::string lower_case(std::string_view text);
[[nodiscard]] std::string_view trimmed(std::string_view text);

}  // namespace harness
