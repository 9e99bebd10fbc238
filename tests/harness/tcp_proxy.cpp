#include "tests/harness/tcp_proxy.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <stdexcept>

namespace harness {

TcpProxy::TcpProxy(std::string address, int port)
    : address_(std::move(address)), server_port_(port), listener_(listen_on_loopback(0)), port_(port_of(listener_)) {
  acceptor_ = std::thread([this] { accept_connections(); });
}

TcpProxy::~TcpProxy() {
  stopping_ = true;
  acceptor_.join();
  for (Link& link : links_) link.thread.join();
}

void TcpProxy::pass() { set(Mode::pass); }
void TcpProxy::refuse() { set(Mode::refuse); }
void TcpProxy::freeze() { set(Mode::freeze); }

void TcpProxy::cut() {
  ++generation_;
  if (!eventually([this] { return open_ == 0; })) throw std::runtime_error("the proxy could not cut");
}

void TcpProxy::outage() {
  refuse();
  cut();
}

void TcpProxy::set(Mode mode) {
  wanted_ = mode;
  if (!eventually([&] { return in_force_ == mode; })) throw std::runtime_error("the proxy did not follow");
}

void TcpProxy::accept_connections() {
  while (!stopping_) {
    links_.remove_if([](Link& link) {
      if (!link.ended) return false;
      link.thread.join();
      return true;
    });
    const Mode wanted = wanted_;
    if (wanted != in_force_) {
      if (wanted == Mode::refuse) {
        // Bound without listening: nobody else can take the port meanwhile, and connecting is refused.
        listener_.close();
        listener_ = bind_loopback(port_);
      } else if (in_force_ == Mode::refuse) {
        start_listening(listener_);
      }
      in_force_ = wanted;
    }
    if (in_force_ == Mode::refuse) {
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
      continue;
    }
    if (!wait_readable(listener_.get(), 5)) continue;
    Link& link = links_.emplace_back();
    link.client = Fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ++open_;
    link.thread = std::thread([this, &link, generation = generation_.load()] { relay(link, generation); });
  }
}

void TcpProxy::relay(Link& link, int generation) {
  link.server = try_connect(address_, server_port_, Deadline(2000));
  const int on = 1;
  ::setsockopt(link.client.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  bool alive = link.client.is_open() && link.server.is_open();
  bool server_spoke_last = true;
  while (alive && !stopping_ && generation == generation_) {
    if (in_force_ == Mode::freeze) {
      if (peer_left(link.client.get())) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
      continue;
    }
    pollfd ends[2] = {{link.client.get(), POLLIN, 0}, {link.server.get(), POLLIN, 0}};
    if (::poll(ends, 2, 5) <= 0 || in_force_ == Mode::freeze) continue;
    if (ends[0].revents != 0) {
      round_trips_ += server_spoke_last ? 1 : 0;
      server_spoke_last = false;
      alive = pump(link.client.get(), link.server.get());
    }
    if (alive && ends[1].revents != 0) {
      server_spoke_last = true;
      alive = pump(link.server.get(), link.client.get());
    }
  }
  link.server.close();
  if (generation != generation_) link.client.close_with_rst();
  link.client.close();
  --open_;
  link.ended = true;
}

bool TcpProxy::pump(int from, int to) {
  char bytes[65536];
  const ssize_t got = ::recv(from, bytes, sizeof bytes, 0);
  if (got < 0 && errno == EINTR) return true;
  // PostgreSQL takes in what libpq sends before it answers at length, so a blocking write ends.
  return got > 0 && send_all(to, std::string_view(bytes, static_cast<size_t>(got)));
}

}  // namespace harness
