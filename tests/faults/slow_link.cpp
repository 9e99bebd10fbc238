#include "tests/faults/slow_link.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <deque>
#include <string>

namespace faults {

using namespace harness;

SlowLink::SlowLink(int server_port) : server_port_(server_port), listener_(listen_on_loopback(0)), port_(port_of(listener_)) {
  acceptor_ = std::thread([this] { accept_connections(); });
}

SlowLink::~SlowLink() {
  stopping_ = true;
  acceptor_.join();
  for (Link& link : links_) link.thread.join();
}

void SlowLink::accept_connections() {
  while (!stopping_) {
    links_.remove_if([](Link& link) {
      if (!link.ended) return false;
      link.thread.join();
      return true;
    });
    if (!wait_readable(listener_.get(), 20)) continue;
    Link& link = links_.emplace_back();
    link.client = Fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    link.thread = std::thread([this, &link] {
      relay(link);
      link.client.close();
      link.server.close();
      link.ended = true;
    });
  }
}

void SlowLink::relay(Link& link) {
  struct Late {
    Clock::time_point due;
    std::string bytes;
  };
  std::deque<Late> answers;
  link.server = try_connect("127.0.0.1", server_port_, Deadline(2000));
  if (!link.client.is_open() || !link.server.is_open()) return;
  const int on = 1;
  ::setsockopt(link.client.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  char bytes[65536];
  while (!stopping_) {
    while (!answers.empty() && answers.front().due <= Clock::now()) {
      if (!send_all(link.client.get(), answers.front().bytes)) return;
      answers.pop_front();
    }
    pollfd ends[2] = {{link.client.get(), POLLIN, 0}, {link.server.get(), POLLIN, 0}};
    if (::poll(ends, 2, answers.empty() ? 20 : 2) <= 0) continue;
    if (ends[0].revents != 0) {
      const ssize_t got = ::recv(link.client.get(), bytes, sizeof bytes, 0);
      if (got <= 0 || !send_all(link.server.get(), {bytes, static_cast<size_t>(got)})) return;
    }
    if (ends[1].revents != 0) {
      const ssize_t got = ::recv(link.server.get(), bytes, sizeof bytes, 0);
      if (got <= 0) return;
      answers.push_back({Clock::now() + std::chrono::milliseconds(delay_ms_), std::string(bytes, static_cast<size_t>(got))});
    }
  }
}

}  // namespace faults
