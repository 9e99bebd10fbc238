#include "server.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "listener.hpp"
#include "log.hpp"

namespace {

// httplib's default of 5 makes the kernel drop a burst, and clients try again a second later.
constexpr int kBacklog = 4096;
// How long the door waits before it tries accept() again after it failed for lack of descriptors.
constexpr auto kAcceptPause = milliseconds(100);
// How often the log says so, and that there are too many connections.
constexpr auto kAcceptTold = std::chrono::seconds(10);
// A client that was accepted just before the stop gets this long for its handshake and request: a few round trips.
constexpr auto kLastRequestsMax = std::chrono::seconds(3);
// How many requests a connection may have, for the Keep-Alive header: it has no limit of its own.
constexpr int kKeepAliveRequests = 100'000;
constexpr int kEventsMax = 256;
// Without the express one. More than processors: a burst of lines is shared with the threads of the other programs
// here, and more of ours at work mean a larger share, and so a shorter way for each line (docs/performance.md).
constexpr size_t kPumpThreads = 8;
// Connections that have gone before accept() took them, in one go.
constexpr int kAcceptFailuresMax = 64;

void signal(const UniqueFd& event) {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event.get(), &one, sizeof one);
}

void watch(const UniqueFd& epoll, int fd, const void* who) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = const_cast<void*>(who);
  ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event);
}

Connection::Limits limits_of(const Server::Settings& settings) {
  return {settings.body_bytes_max, settings.header_timeout, settings.body_timeout, settings.idle_timeout, settings.write_timeout};
}

}  // namespace

Server::Server(Settings settings, SslContext tls)
    : host_(std::move(settings.host)),
      port_(settings.port),
      has_tls_(tls != nullptr),
      connections_max_(settings.connections_max),
      threads_max_(settings.threads_max),
      limits_(limits_of(settings)),
      tls_(std::move(tls)),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      greeting_(::epoll_create1(EPOLL_CLOEXEC)),
      stop_event_(::eventfd(0, EFD_CLOEXEC)),
      pump_(std::make_unique<Pump>(stop_event_.get())) {
  set_post_routing_handler([](const httplib::Request&, httplib::Response& response) {
    Exchange& exchange = Exchange::current();
    exchange.status = response.status;
    response.set_header("X-Request-Id", exchange.id());
    // httplib's own says what holds for connections that it keeps.
    if (response.headers.erase("Keep-Alive") != 0) {
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(exchange.connection_.limits().idle_timeout).count();
      response.set_header("Keep-Alive", "timeout=" + std::to_string(seconds) + ", max=" + std::to_string(kKeepAliveRequests));
    }
    // httplib says in answers to HEAD that ranges are served, which they are not here, and gives a 204 a
    // length, which it must not have (RFC 9110, 8.6).
    response.headers.erase("Accept-Ranges");
    if (response.status == 204) response.headers.erase("Content-Length");
  });
}

Server::~Server() {
  if (door_.joinable()) stop(milliseconds(0));
}

std::optional<StartProblem> Server::bind() {
  const std::string port = std::to_string(port_);
  // One socket for both families; without IPv6 on this machine, IPv4 alone.
  auto listener = listen_on(AF_UNSPEC, host_.empty() ? "::" : host_, port, kBacklog);
  if (!listener.ok() && host_.empty() && (listener.error().no_address || listener.error().error == EAFNOSUPPORT)) {
    listener = listen_on(AF_INET, "0.0.0.0", port, kBacklog);
  }
  if (listener.ok()) {
    adopt(std::move(listener.value()));
    return std::nullopt;
  }
  const ListenFailure& failure = listener.error();
  if (failure.no_address) return StartProblem{true, "--host: '" + host_ + "' is not an address: " + failure.reason};
  std::string problem = "Port " + port + " can't be had: " + failure.reason;
  if (failure.error == EADDRINUSE) problem += ". Another server is running there: stop it, or choose another --port.";
  if (failure.error == EACCES) problem += ". Ports under 1024 need root: run it by sudo, or choose a higher --port.";
  return StartProblem{false, std::move(problem)};
}

void Server::adopt(UniqueFd listener) {
  listener_ = std::move(listener);
  // httplib ends a response early when it believes to be stopped, which it sees by its own listener.
  svr_sock_ = listener_.get();
}

std::string Server::url() const { return (has_tls_ ? "https://" : "http://") + local_address(listener_); }

void Server::start() {
  pump_->start(kPumpThreads);
  workers_ = std::make_unique<Workers>(threads_max_, [this](Held connection) { serve(std::move(connection)); });
  watch(epoll_, listener_.get(), &listener_);
  watch(epoll_, door_pulse_.fd(), &door_pulse_);
  watch(greeting_, greeters_pulse_.fd(), &greeters_pulse_);
  // A handshake is all computing, so more threads than processors gain nothing; and what OpenSSL keeps for
  // each thread that has made one, and the stack it has touched, is kept for these only.
  const size_t greeters = has_tls_ ? std::max(2u, std::thread::hardware_concurrency()) : 0;
  for (size_t i = 0; i < greeters; ++i) greeters_.emplace_back([this] { keep_greeting(); });
  door_ = std::thread([this] { keep_door(); });
}

Server::Use Server::use() {
  return {connections_, connections_max_, workers_->threads(), workers_->threads_max(), workers_->waiting()};
}

void Server::set_limits(const Settings& settings) {
  connections_max_ = settings.connections_max;
  workers_->set_threads_max(settings.threads_max);
  limits_.set(limits_of(settings));
}

void Server::set_tls(SslContext tls) { tls_.set(std::move(tls)); }

std::string_view Server::self_check(Clock::duration patience) {
  const bool pump_beats = pump_->beats(patience);
  const bool greeters_beat = !has_tls_ || greeters_pulse_.beats(patience);
  if (!door_pulse_.beats(patience)) return "door";
  if (!greeters_beat) return "greeters";
  if (!pump_beats) return "pump";
  return answers_itself() ? "" : "routing";
}

bool Server::stop(milliseconds drain) {
  draining_ = true;
  door_pulse_.wake();
  std::unique_lock lock(mutex_);
  const bool drained = served_.wait_for(lock, drain, [this] { return !accepting_ && serving_ == 0 && waiting_.empty(); });
  closed_ = true;
  if (!drained) signal(stop_event_);
  lock.unlock();
  door_pulse_.wake();
  greeters_pulse_.wake();
  door_.join();
  for (std::thread& greeter : greeters_) greeter.join();
  lock.lock();
  Connection::Waiting closing;
  closing.swap(waiting_);
  lock.unlock();
  closing.clear();
  lock.lock();
  const bool all_ended = served_.wait_for(lock, kStopMax, [this] { return serving_ == 0; });
  lock.unlock();
  if (all_ended) {
    workers_.reset();
    pump_.reset();
  }
  return all_ended;
}

// ---- The door, which is one thread ----

void Server::keep_door() {
  ::pthread_setname_np(::pthread_self(), "door");
  std::array<epoll_event, kEventsMax> events;
  while (!closed_) {
    if (draining_ && listener_) stop_accepting();
    const int wait_ms = handle_deadlines();
    const int count = ::epoll_wait(epoll_.get(), events.data(), kEventsMax, wait_ms);
    bool clients_came = false;
    for (int i = 0; i < count; ++i) {
      void* who = events[static_cast<size_t>(i)].data.ptr;
      if (who == &listener_) {
        clients_came = true;
      } else if (who == &door_pulse_) {
        door_pulse_.answer();
      } else {
        hand_to(*workers_, take(static_cast<Connection*>(who)));
      }
    }
    // Last, because it may close idle connections, and one of those may have had an event too.
    if (clients_came && !draining_) accept_clients();
  }
  listener_.reset();
}

// What has been accepted is still answered. What has not is left to who else has the listener, if anybody: they keep
// it open, so that closing it here does not take it off the epoll.
void Server::stop_accepting() {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener_.get(), nullptr);
  listener_.reset();
  accept_again_at_ = {};
  Connection::Waiting closing;  // closed after the lock is gone
  const std::lock_guard lock(mutex_);
  last_requests_until_ = Clock::now() + kLastRequestsMax;
  for (auto place = waiting_.begin(); place != waiting_.end();) {
    const auto here = place++;
    Connection& connection = *here->second;
    pollfd watched{connection.fd(), POLLIN, 0};
    // An idle client that has sent its next request has it answered.
    if (connection.phase == Connection::Phase::idle && ::poll(&watched, 1, 0) == 0) {
      closing.insert(waiting_.extract(here));
      --connections_;
    } else if (connection.phase != Connection::Phase::body && here->first > last_requests_until_) {
      auto node = waiting_.extract(here);
      node.key() = last_requests_until_;
      connection.deadline = Deadline::at_time(last_requests_until_);
      connection.waiting = waiting_.insert(std::move(node));
    }
  }
  accepting_ = false;
  served_.notify_all();
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
    if (connections_ >= connections_max_ && !evict_idle()) {
      say_full();
      continue;  // closes it
    }
    admit(std::move(socket), text_of(address));
  }
}

void Server::admit(UniqueFd socket, std::string address) {
  const int on = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  Ssl ssl(has_tls_ ? SSL_new(tls_.get()->get()) : nullptr);
  if (has_tls_ && !ssl) return;
  auto connection = std::make_unique<Connection>(std::move(socket), std::move(ssl), std::move(address), limits_.get());
  connection->deadline = Deadline::after(connection->limits().header_timeout);
  ++connections_;
  park(std::move(connection), EPOLLIN);
}

// A client was turned away without a word: there is no thread that could say one.
void Server::say_full() {
  metrics::refused[metrics::Limit::max_connections].add();
  if (Clock::now() < full_told_at_ + kAcceptTold) return;
  full_told_at_ = Clock::now();
  LogLine(LogLevel::warning, "connections_full").add("limit", metrics::name_of(metrics::Limit::max_connections)).add("connections", connections_.load());
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
      if (!waiting_.begin()->second->handshaken()) {
        hang_up(waiting_.begin());
        continue;
      }
      late.push_back(std::move(waiting_.begin()->second));
      waiting_.erase(waiting_.begin());
      if (late.back()->phase == Connection::Phase::body) ++serving_;
    }
    if (!waiting_.empty()) next = std::min(next, waiting_.begin()->first);
    if (draining_) served_.notify_all();
  }
  for (Held& connection : late) {
    if (connection->phase == Connection::Phase::body) {
      // No event has come for it: what comes from now on must not reach the door, which has it no more.
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection->fd(), nullptr);
      connection->watched_by = -1;
      connection->timed_out = true;
      hand_to(*workers_, std::move(connection));
    } else {
      if (connection->phase == Connection::Phase::opening) metrics::refused[metrics::Limit::header_timeout].add();
      --connections_;
    }
  }
  return static_cast<int>(std::chrono::ceil<milliseconds>(next - now).count());
}

// Ends the handshake of a client that is late. Its greeter closes it, for that may have an event of it in hand.
void Server::hang_up(Connection::Waiting::iterator place) {
  ::shutdown(place->second->fd(), SHUT_RDWR);
  auto node = waiting_.extract(place);
  node.key() = Clock::time_point::max();
  Connection& connection = *node.mapped();
  connection.waiting = waiting_.insert(std::move(node));
}

// Takes a connection that has had an event. A thread of the epoll that it stood at.
Server::Held Server::take(Connection* connection) {
  const std::lock_guard lock(mutex_);
  Held held = std::move(connection->waiting->second);
  waiting_.erase(held->waiting);
  ++serving_;
  return held;
}

// Without a thread to serve it a connection is closed.
void Server::hand_to(Workers& pool, Held connection) {
  if (Held refused = pool.submit(std::move(connection))) leave(std::move(refused));
}

// Leaves a connection at its epoll until its socket has one of `events`. Any thread.
void Server::park(Held connection, std::uint32_t events) {
  Connection* const raw = connection.get();
  const int epoll = raw->handshaken() ? epoll_.get() : greeting_.get();
  const std::lock_guard lock(mutex_);
  if (closed_ || (draining_ && raw->phase == Connection::Phase::idle)) {
    --connections_;
    return;
  }
  if (raw->phase == Connection::Phase::opening) raw->deadline = Deadline::earlier(raw->deadline, Deadline::at_time(last_requests_until_));
  raw->waiting = waiting_.emplace(raw->deadline.at(), std::move(connection));
  epoll_event event{};
  event.events = events | EPOLLONESHOT;
  if (events != 0) event.events |= EPOLLRDHUP;
  event.data.ptr = raw;
  const int operation = raw->watched_by == epoll ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  raw->watched_by = epoll;
  if (::epoll_ctl(epoll, operation, raw->fd(), &event) != 0) {
    waiting_.erase(raw->waiting);
    --connections_;
  }
}
