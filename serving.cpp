// The part of the server that runs on workers and greeters: a connection's way from its first byte to a
// whole request, and what is no request.
#include <pthread.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>

#include "server.hpp"

namespace {

// For a client to read a refusal before the connection goes: closing at once would reset it.
constexpr auto kLingerMax = std::chrono::seconds(2);
// Of a body that was refused, this much more is thrown away, for clients that read only when they have
// sent everything; then reading stops. It is the default of --max-body.
constexpr size_t kLingerBytesMax = size_t{4} << 20;
// One read; a TLS record holds at most this much.
constexpr size_t kReadBytes = 16 * 1024;
// A greeter that had to do with so many new clients without a pause, while more workers than this for each processor are at
// work, rests then: a storm of clients would take all processors from the streams under way. It rests for as long as the
// clients took it, which is long on a slow or busy machine, times the crowd there is over this bound: the more streams,
// the more are late for each client. One rest for several, because what handshakes compute with is then in the processor's
// caches for all but the first. No rest is longer than the last bound, which a client that comes alone may have to wait
// (docs/performance.md).
constexpr size_t kGreeterRound = 16;
constexpr size_t kCrowdPerProcessor = 225;
constexpr auto kGreeterRestMax = std::chrono::milliseconds(100);
// A client that has its next request ready sends it at once.
constexpr int kNextRequestMs = 2;

}  // namespace

void Server::serve(Held connection) {
  while (connection && advance(connection, kNextRequestMs)) {
  }
  leave(std::move(connection));
}

// A greeter's life.
void Server::keep_greeting() {
  ::pthread_setname_np(::pthread_self(), "greeter");
  size_t in_a_row = 0;
  Clock::time_point since;
  epoll_event event{};
  while (!closed_) {
    // One at a time: what this thread has taken, no other can.
    int events = ::epoll_wait(greeting_.get(), &event, 1, 0);
    if (events == 0) {
      in_a_row = 0;
      events = ::epoll_wait(greeting_.get(), &event, 1, -1);
    }
    if (events != 1) continue;
    if (event.data.ptr == &listener_) {
      if (Held client = accept_one()) {
        if (in_a_row == 0) since = Clock::now();
        greet(std::move(client));
        if (++in_a_row == kGreeterRound) {
          rest_in_crowd(Clock::now() - since);
          in_a_row = 0;
        }
      }
    } else if (event.data.ptr == &greeters_pulse_) {
      greeters_pulse_.answer();
    } else {
      greet(take(static_cast<Connection*>(event.data.ptr)));
    }
  }
  greeters_pulse_.wake();  // the next one, whose call this may have answered
}

void Server::rest_in_crowd(Clock::duration worked) {
  const size_t crowd = kCrowdPerProcessor * processors_;
  const size_t busy = workers_->busy();
  if (busy > crowd) std::this_thread::sleep_for(std::min<Clock::duration>(worked * busy / crowd, kGreeterRestMax));
}

// A client's way from its hello to its first request, and the answer to that, if it can be given at once. Not to a
// second one: the client may not have read the first answer, and a greeter must not wait for room to write.
void Server::greet(Held connection) {
  using State = http1::RequestReader::State;
  while (connection) {
    const State state = connection->reader.state();
    if (state == State::complete || state == State::refused) {
      // A thread of the pool answers most of them; until then the connection is being served.
      if (!answers_at_once(*connection)) return hand_to_worker(std::move(connection));
      connection->greeting = false;
    }
    if (!advance(connection, /*patience_ms=*/0)) break;
  }
  leave(std::move(connection));
}

bool Server::answers_at_once(const Connection& connection) const {
  const http1::RequestReader& reader = connection.reader;
  return connection.greeting && reader.state() == http1::RequestReader::State::complete && reader.method() == "GET" &&
         reader.path() == answered_at_once_;
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

// One step of a connection, which may wait so long for a next request. False: it is over; null: it was parked.
bool Server::advance(Held& connection, int patience_ms) {
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
    connection->deadline = Deadline::after(idle ? connection->limits().idle_timeout : connection->limits().header_timeout);
    return true;
  }
  // A client that sends a byte now and then is with a worker when the door looks for late ones.
  if (connection->deadline.passed()) {
    connection->timed_out = connection->phase == Connection::Phase::body;
    if (!connection->timed_out) metrics::refused[metrics::Limit::header_timeout].add();
    return connection->timed_out;
  }
  if (connection->phase == Connection::Phase::idle && !next_request_comes(*connection, patience_ms)) {
    park(std::move(connection), EPOLLIN);
    return true;
  }
  Io outcome = connection->handshake();
  if (outcome == Io::done) outcome = receive(*connection);
  if (outcome == Io::closed) return false;
  if (outcome != Io::done) {
    if (connection->reader.take_expect_continue() &&
        !connection->write("HTTP/1.1 100 Continue\r\n\r\n", Deadline::after(connection->limits().write_timeout), false)) {
      return false;
    }
    park(std::move(connection), outcome == Io::wants_write ? EPOLLOUT : EPOLLIN);
  }
  return true;
}

// Waits a little for the next request of a client that has just been answered, which saves the way to the
// door and back; but not when others may be waiting for this thread.
bool Server::next_request_comes(const Connection& connection, int patience_ms) {
  pollfd watched{connection.fd(), POLLIN, 0};
  return connection.has_unread() || ::poll(&watched, 1, patience_ms != 0 && workers_->can_grow() ? patience_ms : 0) > 0;
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
    connection.expired = false;
    connection.set_limits(limits_.get());
    connection.deadline = Deadline::after(connection.limits().header_timeout);
  }
  try {
    if (connection.reader.feed(bytes) == http1::RequestReader::State::body && connection.phase == Connection::Phase::opening) {
      connection.phase = Connection::Phase::body;
      connection.deadline = Deadline::after(connection.limits().body_timeout);
    }
  } catch (const std::bad_alloc&) {
    return Connection::Io::closed;  // others may go on with what it gives back
  }
  return outcome;
}

// Answers what never became a request, and ends the connection.
void Server::refuse(Held connection) {
  static const http1::Refusal kTooSlow{408, "The request's body did not arrive in time."};
  const http1::Refusal& refusal = connection->timed_out ? kTooSlow : connection->reader.refusal();
  Exchange exchange(*this, *connection);
  exchange.status = refusal.status;
  if (connection->timed_out) exchange.refused_by(metrics::Limit::body_timeout);
  if (refusal.status == 413) exchange.refused_by(metrics::Limit::max_body);
  if (refusal.status == 503) exchange.refused_by(metrics::Limit::body_memory);
  exchange.reason = refusal.sentence;
  const std::string body = "{\"error\":\"" + refusal.sentence + "\"}";  // the sentences are ours: nothing to escape
  const std::string retry_after = refusal.status == 503 ? std::string("Retry-After: ") + kRetryAfterSeconds + "\r\n" : "";
  exchange.hold("HTTP/1.1 " + std::to_string(refusal.status) + " Refused\r\nContent-Type: application/json\r\nX-Request-Id: " + exchange.id() +
                "\r\n" + retry_after + "Content-Length: " + std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" +
                (connection->reader.method() == "HEAD" ? "" : body));
  exchange.flush();
  exchange.finish();
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
