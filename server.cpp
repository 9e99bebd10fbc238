#include "server.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "log.hpp"

namespace {

// httplib's default of 5 makes the kernel drop a burst, and clients try again a second later.
constexpr int kBacklog = 4096;
// How long the door waits before it tries accept() again after it failed for lack of descriptors.
constexpr auto kAcceptPause = milliseconds(100);
// How often the log says so.
constexpr auto kAcceptTold = std::chrono::seconds(10);
// For a client to read a refusal before the connection goes: closing at once would reset it.
constexpr auto kLingerMax = std::chrono::seconds(2);
// Of a body that was refused, this much more is thrown away, for clients that read only when they have
// sent everything; then reading stops.
constexpr size_t kLingerBytesMax = size_t{1} << 20;
// Beyond --drain: for streams to say that they end, and for their replies to be stored.
constexpr auto kStopMax = std::chrono::seconds(10);
constexpr int kEventsMax = 256;
// One read; a TLS record holds at most this much.
constexpr size_t kReadBytes = 16 * 1024;
// A client that has its next request ready sends it at once.
constexpr int kNextRequestMs = 2;
// More than processors: a burst of lines is shared with the threads of the other programs here, and more of
// ours at work mean a larger share, and so a shorter way for each line (docs/performance.md).
constexpr size_t kPumpThreads = 8;
// Connections that have gone before accept() took them, in one go.
constexpr int kAcceptFailuresMax = 64;

std::string text_of(const sockaddr_storage& address) {
  std::array<char, NI_MAXHOST> host{};
  const socklen_t length = address.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  if (::getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host.data(), host.size(), nullptr, 0, NI_NUMERICHOST) != 0) return "?";
  const std::string text(host.data());
  return text.starts_with("::ffff:") ? text.substr(7) : text;
}

void signal(const UniqueFd& event) {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event.get(), &one, sizeof one);
}

}  // namespace

Server::Server(Settings settings, SslContext tls)
    : settings_(std::move(settings)),
      tls_(std::move(tls)),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      door_event_(::eventfd(0, EFD_CLOEXEC)),
      stop_event_(::eventfd(0, EFD_CLOEXEC)) {
  // httplib puts these into its Keep-Alive header only.
  set_keep_alive_timeout(std::chrono::duration_cast<std::chrono::seconds>(settings_.idle_timeout).count());
  set_keep_alive_max_count(100'000);
  set_post_routing_handler([](const httplib::Request&, httplib::Response& response) {
    Exchange::current().status = response.status;
    response.set_header("X-Request-Id", Exchange::current().id());
  });
}

Server::~Server() {
  if (door_.joinable()) stop(milliseconds(0));
}

std::optional<StartProblem> Server::bind() {
  if (!settings_.host.empty()) return bind_to(AF_UNSPEC, settings_.host.c_str());
  // One socket for both families; without IPv6 on this machine, IPv4 alone.
  if (auto problem = bind_to(AF_INET6, "::"); !problem || errno != EAFNOSUPPORT) return problem;
  return bind_to(AF_INET, "0.0.0.0");
}

std::optional<StartProblem> Server::bind_to(int family, const char* host) {
  const std::string port = std::to_string(settings_.port);
  addrinfo hints{};
  hints.ai_family = family;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host, port.c_str(), &hints, &found); error != 0) {
    return StartProblem{true, "--host: '" + std::string(host) + "' is not an address: " + ::gai_strerror(error)};
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> guard(found, ::freeaddrinfo);
  listener_.reset(::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  const int off = 0;
  // Not SO_REUSEPORT, which is httplib's default: with it a second chatterd would take half of the clients.
  ::setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (found->ai_family == AF_INET6) ::setsockopt(listener_.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  if (!listener_ || ::bind(listener_.get(), found->ai_addr, found->ai_addrlen) != 0 || ::listen(listener_.get(), kBacklog) != 0) {
    const int error = errno;
    std::string problem = "Port " + port + " can't be had: " + errno_text(error);
    if (error == EADDRINUSE) problem += ". Another server is running there: stop it, or choose another --port.";
    if (error == EACCES) problem += ". Ports under 1024 need root: run it by sudo, or choose a higher --port.";
    errno = error;
    return StartProblem{false, std::move(problem)};
  }
  // httplib ends a response early when it believes to be stopped, which it sees by its own listener.
  svr_sock_ = listener_.get();
  return std::nullopt;
}

std::string Server::url() const {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length);
  const bool v6 = address.ss_family == AF_INET6;
  const in_port_t port = v6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port : reinterpret_cast<sockaddr_in&>(address).sin_port;
  const std::string host = text_of(address);
  return std::string(tls_ ? "https://" : "http://") + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(ntohs(port));
}

void Server::start() {
  pump_ = std::make_unique<Pump>(kPumpThreads, stop_event_.get());
  workers_ = std::make_unique<Workers>(settings_.threads_max, [this](Held connection) { serve(std::move(connection)); });
  // A handshake is all computing, so more threads than processors gain nothing; and what OpenSSL keeps for
  // each thread that has made one, and the stack it has touched, is kept for these only.
  const size_t greeters_max = std::max(2u, std::thread::hardware_concurrency());
  greeters_ = std::make_unique<Workers>(greeters_max, [this](Held connection) { greet(std::move(connection)); });
  for (const UniqueFd* watched : {&listener_, &door_event_}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = const_cast<UniqueFd*>(watched);
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, watched->get(), &event);
  }
  door_ = std::thread([this] { keep_door(); });
}

bool Server::stop(milliseconds drain) {
  draining_ = true;
  signal(door_event_);
  door_.join();
  std::unique_lock lock(mutex_);
  const auto none_left = [this] { return serving_ == 0; };
  if (!served_.wait_for(lock, drain, none_left)) signal(stop_event_);
  const bool all_ended = served_.wait_for(lock, kStopMax, none_left);
  lock.unlock();
  if (all_ended) {
    greeters_.reset();
    workers_.reset();
    pump_.reset();
  }
  return all_ended;
}

// ---- The door ----

void Server::keep_door() {
  std::array<epoll_event, kEventsMax> events;
  while (!draining_) {
    const int wait_ms = handle_deadlines();
    const int count = ::epoll_wait(epoll_.get(), events.data(), kEventsMax, wait_ms);
    bool clients_came = false;
    for (int i = 0; i < count; ++i) {
      void* who = events[static_cast<size_t>(i)].data.ptr;
      if (who == &listener_) {
        clients_came = true;
      } else if (who != &door_event_) {
        wake_up(static_cast<Connection*>(who));
      }
    }
    // Last, because it may close idle connections, and one of those may have had an event too.
    if (clients_came) accept_clients();
  }
  listener_.reset();
  Connection::Waiting closing;  // closed after the lock is gone
  const std::lock_guard lock(mutex_);
  closing.swap(waiting_);
}

void Server::accept_clients() {
  int failures = 0;
  for (int i = 0; i < kEventsMax; ++i) {
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    UniqueFd socket(::accept4(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket) {
      if (errno == EAGAIN) return;
      // The connection that was there has gone again: on to the next (accept(2), "Error handling"). But
      // where that never ends, something else is wrong.
      if (++failures < kAcceptFailuresMax && (errno == EINTR || errno == ECONNABORTED || errno == EPROTO || errno == ENETDOWN || errno == ENETUNREACH ||
          errno == EHOSTDOWN || errno == EHOSTUNREACH || errno == ENONET || errno == EOPNOTSUPP || errno == ENOPROTOOPT)) {
        continue;
      }
      return pause_accepting(errno);
    }
    if (connections_ >= settings_.connections_max && !evict_idle()) continue;  // closes it
    admit(std::move(socket), text_of(address));
  }
}

void Server::admit(UniqueFd socket, std::string address) {
  const int on = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  Ssl ssl(tls_ ? SSL_new(tls_.get()) : nullptr);
  if (tls_ && !ssl) return;
  auto connection = std::make_unique<Connection>(std::move(socket), std::move(ssl), std::move(address), settings_.body_bytes_max);
  connection->deadline = Deadline::after(settings_.header_timeout);
  ++connections_;
  epoll_event event{};
  event.events = 0;  // park() asks for what it needs
  event.data.ptr = connection.get();
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, connection->fd(), &event) != 0) {
    --connections_;
    return;
  }
  park(std::move(connection), EPOLLIN);
}

// Descriptors or memory have run out. The listener stays readable: without a pause this would spin.
void Server::pause_accepting(int error) {
  const bool evicted = evict_idle();
  if (Clock::now() >= accept_told_at_ + kAcceptTold) {
    accept_told_at_ = Clock::now();
    LogLine(LogLevel::warning, "accept_failed").add("reason", errno_text(error)).add("idle_closed", evicted ? 1 : 0);
  }
  accept_again_at_ = Clock::now() + kAcceptPause;
  epoll_event event{};
  event.events = 0;
  event.data.ptr = &listener_;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
}

// Closes the connection that has been idle longest, to make room for a new client.
bool Server::evict_idle() {
  Held evicted;
  const std::lock_guard lock(mutex_);
  for (auto& [deadline, connection] : waiting_) {
    if (connection->phase != Connection::Phase::idle) continue;
    const auto place = connection->waiting;
    evicted = std::move(connection);
    waiting_.erase(place);
    --connections_;
    return true;
  }
  return false;
}

// Ends what has waited too long. Returns how long the door may sleep, as epoll_wait takes it.
int Server::handle_deadlines() {
  const auto now = Clock::now();
  if (accept_again_at_ != Clock::time_point{} && now >= accept_again_at_) {
    accept_again_at_ = {};
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = &listener_;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
  }
  std::vector<Held> late;
  Clock::time_point next = now + std::chrono::seconds(1);  // a connection parked meanwhile may be due before the first of now
  if (accept_again_at_ != Clock::time_point{}) next = std::min(next, accept_again_at_);
  {
    const std::lock_guard lock(mutex_);
    while (!waiting_.empty() && waiting_.begin()->first <= now) {
      late.push_back(std::move(waiting_.begin()->second));
      waiting_.erase(waiting_.begin());
      if (late.back()->phase == Connection::Phase::body) ++serving_;
    }
    if (!waiting_.empty()) next = std::min(next, waiting_.begin()->first);
  }
  for (Held& connection : late) {
    if (connection->phase == Connection::Phase::body) {
      // No event has come for it: what comes from now on must not reach the door, which has it no more.
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection->fd(), nullptr);
      connection->timed_out = true;
      hand_to(*workers_, std::move(connection));
    } else {
      --connections_;
    }
  }
  return static_cast<int>(std::chrono::ceil<milliseconds>(next - now).count());
}

void Server::wake_up(Connection* connection) {
  Held held;
  {
    const std::lock_guard lock(mutex_);
    const auto place = connection->waiting;
    held = std::move(place->second);
    waiting_.erase(place);
    ++serving_;
  }
  Workers& pool = held->handshaken() ? *workers_ : *greeters_;
  hand_to(pool, std::move(held));
}

// Without a thread to serve it a connection is closed.
void Server::hand_to(Workers& pool, Held connection) {
  if (Held refused = pool.submit(std::move(connection))) leave(std::move(refused));
}

// Leaves a connection at the door until its socket has one of `events`. Any thread.
void Server::park(Held connection, std::uint32_t events) {
  Connection* const raw = connection.get();
  const std::lock_guard lock(mutex_);
  if (draining_) {
    --connections_;
    return;
  }
  raw->waiting = waiting_.emplace(raw->deadline.at(), std::move(connection));
  epoll_event event{};
  event.events = events | EPOLLONESHOT;
  if (events != 0) event.events |= EPOLLRDHUP;
  event.data.ptr = raw;
  // One whose deadline has passed at the door was taken off the epoll.
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, raw->fd(), &event) != 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, raw->fd(), &event);
}

// ---- Serving, on a worker ----

void Server::serve(Held connection) {
  while (connection && advance(connection)) {
  }
  leave(std::move(connection));
}

// On a greeter: the handshake and, if it has come with its end, the request.
void Server::greet(Held connection) {
  using State = http1::RequestReader::State;
  while (connection) {
    const State state = connection->reader.state();
    // A thread of the pool answers; until then the connection is being served.
    if (state == State::complete || state == State::refused) return hand_to(*workers_, std::move(connection));
    if (!advance(connection)) break;
  }
  leave(std::move(connection));
}

// The connection, if it was not parked, is over.
void Server::leave(Held connection) {
  if (connection) {
    connection.reset();
    --connections_;
  }
  const std::lock_guard lock(mutex_);
  if (--serving_ == 0) served_.notify_all();
}

// One step of a connection. False: it is over; null: it was parked.
bool Server::advance(Held& connection) {
  using Io = Connection::Io;
  using State = http1::RequestReader::State;
  if (connection->phase == Connection::Phase::lingering) {
    linger(std::move(connection));
    return true;
  }
  if (connection->timed_out || connection->reader.state() == State::refused) {
    refuse(std::move(connection));
    return true;
  }
  if (connection->reader.state() == State::complete) {
    if (!answer(*connection)) return false;
    const bool idle = connection->reader.next() == State::head && connection->reader.empty();
    connection->phase = idle ? Connection::Phase::idle : Connection::Phase::opening;
    connection->deadline = Deadline::after(idle ? settings_.idle_timeout : settings_.header_timeout);
    return true;
  }
  // A client that sends a byte now and then is with a worker when the door looks for late ones.
  if (connection->deadline.passed()) {
    connection->timed_out = connection->phase == Connection::Phase::body;
    return connection->timed_out;
  }
  Io outcome = connection->handshake();
  if (outcome == Io::done) outcome = receive(*connection);
  if (outcome == Io::closed) return false;
  if (outcome != Io::done) {
    if (connection->reader.take_expect_continue() &&
        !connection->write("HTTP/1.1 100 Continue\r\n\r\n", Deadline::after(settings_.write_timeout), false)) {
      return false;
    }
    if (next_request_comes(*connection)) return true;
    park(std::move(connection), outcome == Io::wants_write ? EPOLLOUT : EPOLLIN);
  }
  return true;
}

// Waits a little for the next request of a client that has just been answered, which saves the way to the
// door and back; but not when others may be waiting for this thread.
bool Server::next_request_comes(const Connection& connection) {
  if (connection.phase != Connection::Phase::idle || !workers_->can_grow()) return false;
  pollfd watched{connection.fd(), POLLIN, 0};
  return ::poll(&watched, 1, kNextRequestMs) > 0;
}

// Reads once and notes how far the request has come. The buffer is on the stack, in a function of its own:
// a thread that serves a stream for minutes has it no more, and of what is not filled nothing is touched.
Connection::Io Server::receive(Connection& connection) {
  std::array<char, kReadBytes> buffer;
  std::string_view bytes;
  const Connection::Io outcome = connection.read(buffer, bytes);
  if (outcome != Connection::Io::done) return outcome;
  if (connection.phase == Connection::Phase::idle) {
    connection.phase = Connection::Phase::opening;
    connection.deadline = Deadline::after(settings_.header_timeout);
  }
  if (connection.reader.feed(bytes) == http1::RequestReader::State::body && connection.phase == Connection::Phase::opening) {
    connection.phase = Connection::Phase::body;
    connection.deadline = Deadline::after(settings_.body_timeout);
  }
  return outcome;
}

// Answers what never became a request, and ends the connection.
void Server::refuse(Held connection) {
  static const http1::Refusal kTooSlow{408, "The request's body did not arrive in time."};
  const http1::Refusal& refusal = connection->timed_out ? kTooSlow : connection->reader.refusal();
  Exchange exchange(*this, *connection);
  exchange.status = refusal.status;
  exchange.reason = refusal.sentence;
  const std::string body = "{\"error\":\"" + refusal.sentence + "\"}";  // the sentences are ours: nothing to escape
  exchange.hold("HTTP/1.1 " + std::to_string(refusal.status) + " Refused\r\nContent-Type: application/json\r\nX-Request-Id: " + exchange.id() +
                "\r\nContent-Length: " + std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" +
                (connection->reader.method() == "HEAD" ? "" : body));
  exchange.flush();
  exchange.log();
  connection->finish_writing();
  connection->phase = Connection::Phase::lingering;
  connection->deadline = Deadline::after(kLingerMax);
  linger(std::move(connection));
}

// Throws away what the client still sends, until it has closed its side.
void Server::linger(Held connection) {
  std::array<char, kReadBytes> buffer;
  std::string_view bytes;
  Connection::Io outcome = Connection::Io::done;
  while (outcome == Connection::Io::done && connection->lingered_bytes < kLingerBytesMax && !connection->deadline.passed()) {
    outcome = connection->read(buffer, bytes);
    connection->lingered_bytes += bytes.size();
  }
  if (outcome == Connection::Io::wants_read) {
    park(std::move(connection), EPOLLIN);
  } else if (outcome == Connection::Io::done) {
    park(std::move(connection), 0);
  } else {
    connection.reset();
    --connections_;
  }
}
