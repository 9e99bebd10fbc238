#include "tests/bench/client.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <sys/epoll.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace bench {

std::optional<Target> parse_target(std::string_view url) {
  Target target;
  target.tls = url.starts_with("https://");
  if (!target.tls && !url.starts_with("http://")) return std::nullopt;
  url.remove_prefix(target.tls ? 8 : 7);
  if (url.ends_with('/')) url.remove_suffix(1);
  const size_t colon = url.rfind(':');
  if (colon == std::string_view::npos || url.find('/') != std::string_view::npos) return std::nullopt;
  target.host = url;
  std::string host(url.substr(0, colon));
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::string(url.substr(colon + 1)).c_str(), &hints, &found) != 0) return std::nullopt;
  std::memcpy(&target.address, found->ai_addr, found->ai_addrlen);
  target.address_length = found->ai_addrlen;
  ::freeaddrinfo(found);
  return target;
}

TlsContext make_tls_context(bool resume) {
  TlsContext context(SSL_CTX_new(TLS_client_method()));
  if (!context) throw std::runtime_error("SSL_CTX_new");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_read_ahead(context.get(), 1);
  SSL_CTX_set_session_cache_mode(context.get(), resume ? SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL : SSL_SESS_CACHE_OFF);
  if (resume) SSL_CTX_sess_set_new_cb(context.get(), Client::keep_session);
  return context;
}

int Client::keep_session(SSL* ssl, SSL_SESSION* session) {
  static_cast<Client*>(SSL_get_app_data(ssl))->session_.reset(session);
  return 1;  // the reference is ours now
}

void Client::start(std::string request) {
  request_ = std::move(request);
  sent_ = 0;
  head_ = {};
  body_ = http1::BodyDecoder::none();
  head_read_ = answer_read_ = false;
  problem_.clear();
  if (socket_.is_open()) {
    step_ = Step::exchanging;
  } else if (connect()) {
    step_ = Step::connecting;
  } else {
    problem_ = std::string("connecting: ") + std::strerror(errno);
  }
}

bool Client::connect() {
  socket_ = harness::Fd(::socket(target_.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const int result = ::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&target_.address), target_.address_length);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLET;
  event.data.u64 = tag_;
  if ((result != 0 && errno != EINPROGRESS) || ::epoll_ctl(epoll_, EPOLL_CTL_ADD, socket_.get(), &event) != 0) return false;
  resumed_ = false;
  if (!target_.tls) return true;
  ssl_.reset(SSL_new(tls_));
  SSL_set_fd(ssl_.get(), socket_.get());
  SSL_set_connect_state(ssl_.get());
  SSL_set_app_data(ssl_.get(), this);
  if (session_) SSL_set_session(ssl_.get(), session_.get());
  return true;
}

void Client::close() {
  // Without it OpenSSL takes the connection for a failed one, and its session for spoilt.
  if (ssl_ && SSL_is_init_finished(ssl_.get())) SSL_shutdown(ssl_.get());
  ERR_clear_error();
  ssl_.reset();
  socket_.close();
  step_ = Step::idle;
}

Client::Progress Client::fail(std::string problem) {
  problem_ = std::move(problem);
  close();
  return Progress::failed;
}

Client::Progress Client::advance(const Take& take) {
  if (!problem_.empty() && step_ == Step::idle) return fail(problem_);  // start() failed
  if (step_ == Step::connecting) {
    if (!harness::wait_writable(socket_.get(), 0)) return Progress::waiting;
    int error = 0;
    socklen_t length = sizeof error;
    ::getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return fail(std::string("connecting: ") + std::strerror(error));
    step_ = Step::handshaking;
  }
  if (step_ == Step::handshaking) {
    const Io shaken = handshake();
    if (shaken == Io::blocked) return Progress::waiting;
    if (shaken == Io::closed) return fail("the TLS handshake failed");
    step_ = Step::exchanging;
  }
  if (step_ == Step::idle) {
    std::string_view nothing;
    if (socket_.is_open() && read(nothing) != Io::blocked) close();
    return Progress::waiting;
  }
  // An answer may come before all of the request is sent, or instead of it: reading says what became of it.
  write();
  return read_answer(take);
}

Client::Io Client::io_of(int result) {
  const int error = SSL_get_error(ssl_.get(), result);
  return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? Io::blocked : Io::closed;
}

Client::Io Client::handshake() {
  if (!ssl_) return Io::done;
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_.get());
  if (result != 1) return io_of(result);
  resumed_ = SSL_session_reused(ssl_.get()) == 1;
  return Io::done;
}

// Sends what the socket takes.
void Client::write() {
  while (sent_ < request_.size()) {
    ERR_clear_error();
    const std::string_view left = std::string_view(request_).substr(sent_);
    const ssize_t count = ssl_ ? SSL_write(ssl_.get(), left.data(), static_cast<int>(left.size()))
                               : ::send(socket_.get(), left.data(), left.size(), MSG_NOSIGNAL);
    if (count <= 0) return;
    sent_ += static_cast<size_t>(count);
  }
}

Client::Io Client::read(std::string_view& bytes) {
  static std::array<char, 64 * 1024> buffer;
  ERR_clear_error();
  const ssize_t count = ssl_ ? SSL_read(ssl_.get(), buffer.data(), static_cast<int>(buffer.size()))
                             : ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
  if (count > 0) {
    bytes = {buffer.data(), static_cast<size_t>(count)};
    return Io::done;
  }
  if (ssl_) return io_of(static_cast<int>(count));
  return count < 0 && errno == EAGAIN ? Io::blocked : Io::closed;
}

Client::Progress Client::read_answer(const Take& take) {
  while (true) {
    std::string_view bytes;
    const Io outcome = read(bytes);
    const auto read_at = Clock::now();
    // Read on behind the answer's end: the server may have closed, or given a session.
    if (answer_read_ && outcome == Io::done) return fail("bytes behind the answer's end");
    if (outcome == Io::closed && !answer_read_) {
      if (!head_read_) return fail("the connection was closed before an answer");
      if (!body_.ends_at_close()) return fail("the connection was closed in mid-answer");
      answer_read_ = true;
    }
    if (outcome == Io::done) {
      if (!feed(bytes, take, read_at)) return fail("the answer is not HTTP/1.1");
      continue;
    }
    if (!answer_read_) return Progress::waiting;
    step_ = Step::idle;
    if (outcome == Io::closed || !head_.keeps_alive() || sent_ < request_.size()) close();
    return Progress::complete;
  }
}

bool Client::feed(std::string_view bytes, const Take& take, Clock::time_point read_at) {
  if (!head_read_) {
    const auto state = head_.feed(bytes);
    if (state != http1::ResponseHeadReader::State::complete) return state == http1::ResponseHeadReader::State::more;
    head_read_ = true;
    body_ = head_.body();
    bytes = head_.rest();
  }
  auto status = http1::BodyDecoder::Status::more;
  do {
    std::string_view piece;
    status = body_.next(bytes, piece);
    if (!piece.empty()) take(piece, read_at);
  } while (status == http1::BodyDecoder::Status::more && !bytes.empty());
  answer_read_ = status == http1::BodyDecoder::Status::done;
  return status != http1::BodyDecoder::Status::malformed && (!answer_read_ || bytes.empty());
}

}  // namespace bench
