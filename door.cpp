// The door: the server's one thread for connections that wait with nothing to do, for deadlines, and for clients
// that come when there are too many.
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "listener.hpp"
#include "log.hpp"
#include "server.hpp"

namespace {

// How long the door waits before it tries accept() again after it failed for lack of descriptors.
constexpr auto kAcceptPause = milliseconds(100);
// How often the log says so, and that there are too many connections.
constexpr auto kAcceptTold = std::chrono::seconds(10);
// A client that was accepted just before the stop gets this long for its handshake and request: a few round trips.
constexpr auto kLastRequestsMax = std::chrono::seconds(3);
constexpr int kEventsMax = 256;
// Between the ends of two idle connections, which are never urgent: of clients that were served together they would come
// together, at the cost of the streams under way (docs/performance.md). As many as there can be at most by default
// (--max-connections) take less than three minutes.
constexpr auto kIdleCloseGap = milliseconds(20);
// Connections that have gone before accept() took them, in one go.
constexpr int kAcceptFailuresMax = 64;

}  // namespace

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
      } else if (who == &cpu_latency_) {
        cpu_latency_->restore_if_due();
      } else {
        open(take(static_cast<Connection*>(who)));
      }
    }
    // Last, because it may close idle connections, and one of those may have had an event too.
    if (clients_came && !draining_ && !greeters_accept_) accept_clients();
  }
  close_listener();
}

// A connection has had an event. Most idle clients end by leaving, and to see that takes no worker.
void Server::open(Held connection) {
  if (connection->phase == Connection::Phase::idle && receive(*connection) == Connection::Io::closed) {
    leave(std::move(connection));
  } else {
    hand_to_worker(std::move(connection));
  }
}

// What has been accepted is still answered. What has not is left to who else has the listener, if anybody: they keep
// it open, so that closing it here does not take it off the epoll.
void Server::stop_accepting() {
  close_listener();
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
    } else if (connection.phase != Connection::Phase::body && connection.deadline.at() > last_requests_until_) {
      connection.deadline = Deadline::at_time(last_requests_until_);
      move_to(here, std::min(here->first, last_requests_until_));
    }
  }
  accepting_ = false;
  served_.notify_all();
}

// Of a TLS server, a client is ordinarily taken by a greeter, which begins with its handshake at once. Null: there is
// none, or whatever there is is for the door.
Server::Held Server::accept_one() {
  const std::lock_guard lock(listener_mutex_);
  if (!greeters_accept_) return nullptr;
  if (connections_ < connections_max_) {
    std::string address;
    if (UniqueFd socket = accept_socket(address)) {
      if (cpu_latency_) cpu_latency_->shorten();
      watch(greeting_, EPOLL_CTL_MOD, listener_.get(), EPOLLIN | EPOLLONESHOT, &listener_);
      Held connection = admit(std::move(socket), std::move(address));
      const std::lock_guard serving_lock(mutex_);
      if (connection) ++serving_;
      return connection;
    }
  }
  give_listener(/*to_greeters=*/false);
  return nullptr;
}

// Lets the greeters accept, or the door, which knows what to do when there are too many clients. Greeters are told of a
// client one by one: otherwise each client would wake all that sleep.
void Server::give_listener(bool to_greeters) {
  ::epoll_ctl((to_greeters ? epoll_ : greeting_).get(), EPOLL_CTL_DEL, listener_.get(), nullptr);
  watch(to_greeters ? greeting_ : epoll_, EPOLL_CTL_ADD, listener_.get(), to_greeters ? EPOLLIN | EPOLLONESHOT : EPOLLIN, &listener_);
  greeters_accept_ = to_greeters;
}

void Server::close_listener() {
  const std::lock_guard lock(listener_mutex_);
  ::epoll_ctl((greeters_accept_ ? greeting_ : epoll_).get(), EPOLL_CTL_DEL, listener_.get(), nullptr);
  greeters_accept_ = false;
  listener_.reset();
}

// Nothing: errno says why.
UniqueFd Server::accept_socket(std::string& address) {
  sockaddr_storage bytes{};
  socklen_t length = sizeof bytes;
  UniqueFd socket(::accept4(listener_.get(), reinterpret_cast<sockaddr*>(&bytes), &length, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (socket) address = text_of(bytes);
  return socket;
}

void Server::accept_clients() {
  int failures = 0;
  for (int i = 0; i < kEventsMax; ++i) {
    std::string address;
    UniqueFd socket = accept_socket(address);
    if (!socket) {
      if (errno == EAGAIN) break;
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
    if (Held connection = admit(std::move(socket), std::move(address))) park(std::move(connection), EPOLLIN);
  }
  const std::lock_guard lock(listener_mutex_);
  if (has_tls_ && connections_ < connections_max_) give_listener(/*to_greeters=*/true);
}

// Null: there is no memory.
Server::Held Server::admit(UniqueFd socket, std::string address) {
  Ssl ssl(has_tls_ ? SSL_new(tls_.get()->get()) : nullptr);
  if (has_tls_ && !ssl) return nullptr;
  auto connection = std::make_unique<Connection>(std::move(socket), std::move(ssl), std::move(address), limits_.get());
  connection->deadline = Deadline::after(connection->limits().header_timeout);
  connection->greeting = has_tls_;
  ++connections_;
  return connection;
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
  watch(epoll_, EPOLL_CTL_MOD, listener_.get(), 0, &listener_);
}

// Closes the idle connection whose turn comes next, to make room for a new client.
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
    watch(epoll_, EPOLL_CTL_MOD, listener_.get(), EPOLLIN, &listener_);
  }
  std::vector<Held> late;
  Clock::time_point next = now + std::chrono::seconds(1);  // a connection parked meanwhile may be due before the first of now
  if (accept_again_at_ != Clock::time_point{}) next = std::min(next, accept_again_at_);
  {
    const std::lock_guard lock(mutex_);
    while (!waiting_.empty() && waiting_.begin()->first <= now) {
      const auto first = waiting_.begin();
      Connection& connection = *first->second;
      if (connection.dozes()) {
        connection.rouse();
        move_to(first, connection.deadline.at());
        continue;
      }
      if (connection.phase == Connection::Phase::idle && !connection.expired) {
        connection.expired = true;
        next_idle_close_ = std::max(next_idle_close_, now);
        connection.deadline = Deadline::at_time(next_idle_close_);
        next_idle_close_ += kIdleCloseGap;
        move_to(first, connection.deadline.at());
        continue;
      }
      if (connection.greeting) {
        hang_up(first);
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
      hand_to_worker(std::move(connection));
    } else {
      if (connection->phase == Connection::Phase::opening) metrics::refused[metrics::Limit::header_timeout].add();
      --connections_;
    }
  }
  return static_cast<int>(std::chrono::ceil<milliseconds>(next - now).count());
}

// Of a waiting connection: the door looks at it then.
void Server::move_to(Connection::Waiting::iterator place, Clock::time_point due) {
  auto node = waiting_.extract(place);
  node.key() = due;
  Connection& connection = *node.mapped();
  connection.waiting = waiting_.insert(std::move(node));
}

// Ends the handshake of a client that is late. Its greeter closes it, for that may have an event of it in hand.
void Server::hang_up(Connection::Waiting::iterator place) {
  ::shutdown(place->second->fd(), SHUT_RDWR);
  move_to(place, Clock::time_point::max());
}
