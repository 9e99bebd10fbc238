#include "connection.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <sys/socket.h>

#include <cerrno>

namespace {

// The most that ends a client's part of a TLS 1.3 handshake: a change of cipher, for old middleboxes (RFC 8446, D.4: 6
// bytes), and a Finished by SHA-384 (4.4.4: 4 + 48) in its record (5.2: 5 + 1 + 16 for the tag).
constexpr int kFinishedBytesMax = 80;

// What another call has left in this thread's queue would be taken for the next one's error (SSL_get_error(3)). There is
// hardly ever something, which is seen in a fraction of the time that it takes to clear the queue.
void forget_errors() {
  if (ERR_peek_error() != 0) ERR_clear_error();
}

}  // namespace

Connection::Connection(UniqueFd socket, Ssl ssl, std::string address, std::shared_ptr<const Limits> limits)
    : reader(limits->body_bytes_max, limits->body_memory),
      socket_(std::move(socket)),
      ssl_(std::move(ssl)),
      address_(std::move(address)),
      limits_(std::move(limits)),
      handshaken_(ssl_ == nullptr) {
  if (ssl_) {
    SSL_set_fd(ssl_.get(), socket_.get());
    SSL_set_accept_state(ssl_.get());
  }
}

void Connection::set_limits(std::shared_ptr<const Limits> limits) {
  limits_ = std::move(limits);
  reader.set_body_bytes_max(limits_->body_bytes_max);
}

Connection::Io Connection::ssl_outcome(int result) {
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_WANT_READ: return Io::wants_read;
    case SSL_ERROR_WANT_WRITE: return Io::wants_write;
    default: forget_errors(); return Io::closed;
  }
}

Connection::Io Connection::handshake() {
  if (handshaken_) return Io::done;
  rouse();
  forget_errors();
  const int result = SSL_do_handshake(ssl_.get());
  if (result != 1) {
    const Io outcome = ssl_outcome(result);
    // Not before the client's hello, which may come in pieces: the answer to it must not wait. Nor under TLS 1.2,
    // where the client waits for an answer to its part; under 1.3 what is left to write is a ticket for another day.
    const bool answered = SSL_get_state(ssl_.get()) != TLS_ST_BEFORE;
    if (outcome == Io::wants_read && answered && SSL_version(ssl_.get()) == TLS1_3_VERSION) {
      cork(true);
      doze(true);
    }
    return outcome;
  }
  handshaken_ = true;
  return Io::done;
}

void Connection::rouse() { doze(false); }

void Connection::doze(bool dozes) {
  if (dozes == dozes_) return;
  dozes_ = dozes;
  const int bytes = dozes ? kFinishedBytesMax + 1 : 1;
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes);
}

void Connection::cork(bool corked) {
  if (corked == corked_) return;
  corked_ = corked;
  const int value = corked ? 1 : 0;
  ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_CORK, &value, sizeof value);
}

Connection::Io Connection::read(std::span<char> buffer, std::string_view& bytes) {
  bytes = {};
  if (ssl_) {
    forget_errors();
    const int count = SSL_read(ssl_.get(), buffer.data(), static_cast<int>(buffer.size()));
    if (count <= 0) return ssl_outcome(count);
    bytes = {buffer.data(), static_cast<size_t>(count)};
    return Io::done;
  }
  while (true) {
    const ssize_t count = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    if (count > 0) {
      bytes = {buffer.data(), static_cast<size_t>(count)};
      return Io::done;
    }
    if (count < 0 && errno == EINTR) continue;
    return count < 0 && errno == EAGAIN ? Io::wants_read : Io::closed;
  }
}

Connection::Io Connection::write_some(std::string_view& data) {
  while (!data.empty()) {
    ssize_t count = 0;
    Io outcome = Io::wants_write;
    if (ssl_) {
      forget_errors();
      count = SSL_write(ssl_.get(), data.data(), static_cast<int>(std::min<size_t>(data.size(), INT_MAX)));
      cork(false);
      if (count <= 0) outcome = ssl_outcome(static_cast<int>(count));
    } else {
      count = ::send(socket_.get(), data.data(), data.size(), MSG_NOSIGNAL);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno != EAGAIN) outcome = Io::closed;
    }
    if (count <= 0) return outcome;
    data.remove_prefix(static_cast<size_t>(count));
  }
  return Io::done;
}

bool Connection::write(std::string_view data, Deadline write_deadline, bool until_half_close) {
  const short gone = static_cast<short>(POLLERR | POLLHUP | (until_half_close ? POLLRDHUP : 0));
  while (true) {
    const Io outcome = write_some(data);
    if (outcome == Io::done) return true;
    if (outcome == Io::closed) return false;
    pollfd watched{socket_.get(), static_cast<short>((outcome == Io::wants_read ? POLLIN : POLLOUT) | (gone & POLLRDHUP)), 0};
    if (::poll(&watched, 1, write_deadline.left_ms()) == 0 || (watched.revents & gone) != 0) return false;
  }
}

void Connection::finish_writing() {
  if (ssl_ && handshaken_) {
    forget_errors();
    SSL_shutdown(ssl_.get());
    forget_errors();
  }
  ::shutdown(socket_.get(), SHUT_WR);
}
