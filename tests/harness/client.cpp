#include "tests/harness/client.hpp"

#include <fcntl.h>
#include <openssl/err.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <stdexcept>

namespace harness {
namespace {

SSL_CTX* client_context() {
  // The certificate is not checked: the tests look at it where it is their subject.
  static SSL_CTX* const context = [] {
    SSL_CTX* made = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(made, SSL_VERIFY_NONE, nullptr);
    SSL_CTX_set_mode(made, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    return made;
  }();
  return context;
}

std::string_view first_line(std::string_view text) { return text.substr(0, text.find("\r\n")); }

ResponseHead parse_head(const std::string& raw) {
  ResponseHead head;
  head.raw = raw;
  const std::string_view status_line = first_line(raw);
  if (status_line.size() < 12 || status_line.substr(0, 5) != "HTTP/") {
    throw std::runtime_error("not a status line: \"" + std::string(status_line) + "\"");
  }
  head.version = std::string(status_line.substr(0, 8));
  std::from_chars(status_line.data() + 9, status_line.data() + 12, head.status);
  std::string_view rest = std::string_view(raw).substr(status_line.size() + 2);
  while (rest.size() > 2) {
    const std::string_view line = first_line(rest);
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos) throw std::runtime_error("not a header: \"" + std::string(line) + "\"");
    head.headers.emplace_back(std::string(line.substr(0, colon)), std::string(trimmed(line.substr(colon + 1))));
    rest.remove_prefix(line.size() + 2);
  }
  return head;
}

}  // namespace

std::string ResponseHead::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (lower_case(key) == lower_case(name)) return value;
  }
  return {};
}

size_t ResponseHead::count(std::string_view name) const {
  size_t found = 0;
  for (const auto& [key, value] : headers) found += lower_case(key) == lower_case(name) ? 1 : 0;
  return found;
}

std::string bytes_of(const Request& request, bool with_length) {
  std::string text = request.method + " " + request.path + " HTTP/1.1\r\nHost: localhost\r\n";
  for (const auto& [name, value] : request.headers) text += name + ": " + value + "\r\n";
  if (with_length && (request.method == "POST" || !request.body.empty())) {
    text += "Content-Length: " + std::to_string(request.body.size()) + "\r\n";
  }
  return text + "\r\n" + request.body;
}

Connection::Connection(const Endpoint& endpoint, SSL_SESSION* earlier)
    : fd_(connect_to(endpoint.address, endpoint.port, Deadline(kPatienceMs))) {
  if (!endpoint.tls) return;
  ssl_.reset(SSL_new(client_context()));
  SSL_set_fd(ssl_.get(), fd_.get());
  if (earlier != nullptr) SSL_set_session(ssl_.get(), earlier);
  ::fcntl(fd_.get(), F_SETFL, ::fcntl(fd_.get(), F_GETFL) | O_NONBLOCK);
  const Deadline deadline(kPatienceMs);
  for (;;) {
    const int result = SSL_connect(ssl_.get());
    if (result == 1) return;
    const int error = SSL_get_error(ssl_.get(), result);
    ERR_clear_error();
    const bool reads = error == SSL_ERROR_WANT_READ;
    if ((!reads && error != SSL_ERROR_WANT_WRITE) || deadline.passed()) {
      throw std::runtime_error("TLS handshake failed");
    }
    reads ? wait_readable(fd_.get(), deadline.left_ms()) : wait_writable(fd_.get(), deadline.left_ms());
  }
}

std::vector<long> Connection::certificate_serials() const {
  std::vector<long> serials;
  const STACK_OF(X509)* certificates = SSL_get_peer_cert_chain(ssl_.get());
  for (int i = 0; i < sk_X509_num(certificates); ++i) serials.push_back(ASN1_INTEGER_get(X509_get0_serialNumber(sk_X509_value(certificates, i))));
  return serials;
}

TlsSession Connection::session() const {
  TlsSession session(SSL_get1_session(ssl_.get()));
  if (session && SSL_SESSION_is_resumable(session.get()) != 1) session.reset();
  return session;
}

bool Connection::send(std::string_view bytes) {
  if (!ssl_) return send_all(fd_.get(), bytes);
  const Deadline deadline(kPatienceMs);
  while (!bytes.empty()) {
    size_t written = 0;
    if (SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &written) == 1) {
      bytes.remove_prefix(written);
      continue;
    }
    const int error = SSL_get_error(ssl_.get(), 0);
    ERR_clear_error();
    if ((error != SSL_ERROR_WANT_WRITE && error != SSL_ERROR_WANT_READ) || deadline.passed()) return false;
    if (error == SSL_ERROR_WANT_WRITE) wait_writable(fd_.get(), deadline.left_ms());
    else wait_readable(fd_.get(), deadline.left_ms());
  }
  return true;
}

bool Connection::send_in_pieces(std::string_view bytes, size_t size) {
  while (!bytes.empty()) {
    if (!send(bytes.substr(0, size))) return false;
    bytes.remove_prefix(std::min(size, bytes.size()));
  }
  return true;
}

bool Connection::fill(const Deadline& deadline) {
  char bytes[16384];
  for (;;) {
    if (ssl_) {
      size_t got = 0;
      if (SSL_read_ex(ssl_.get(), bytes, sizeof bytes, &got) == 1) {
        buffer_.append(bytes, got);
        return true;
      }
      const int error = SSL_get_error(ssl_.get(), 0);
      ERR_clear_error();
      if (error != SSL_ERROR_WANT_READ) return false;
    }
    if (!wait_readable(fd_.get(), deadline.left_ms())) {
      throw std::runtime_error("nothing came in time; not yet understood: \"" + buffer_.substr(0, 300) + "\"");
    }
    if (ssl_) continue;
    const ssize_t got = ::recv(fd_.get(), bytes, sizeof bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    buffer_.append(bytes, static_cast<size_t>(got));
    return true;
  }
}

bool Connection::fill_to(size_t count, const Deadline& deadline) {
  while (buffer_.size() < count) {
    if (!fill(deadline)) return false;
  }
  return true;
}

std::string Connection::take(size_t count) {
  std::string taken = buffer_.substr(0, count);
  buffer_.erase(0, count);
  return taken;
}

ResponseHead Connection::read_head(int patience_ms, bool answers_head) {
  const Deadline deadline(patience_ms);
  for (;;) {
    size_t end = 0;
    while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
      if (!fill(deadline)) throw std::runtime_error("closed before a response; got \"" + buffer_ + "\"");
    }
    ResponseHead head = parse_head(take(end + 4));
    if (head.status < 200) continue;
    start_body(head, answers_head);
    return head;
  }
}

void Connection::start_body(const ResponseHead& head, bool answers_head) {
  in_chunk_ = false;
  left_ = 0;
  const std::string length = head.header("Content-Length");
  if (answers_head || head.status == 204 || head.status == 304) {
    body_ = Body::complete;
  } else if (lower_case(head.header("Transfer-Encoding")) == "chunked") {
    body_ = Body::chunked;
  } else if (!length.empty()) {
    std::from_chars(length.data(), length.data() + length.size(), left_);
    body_ = left_ == 0 ? Body::complete : Body::length;
  } else {
    body_ = Body::until_close;
  }
}

std::optional<std::string> Connection::next_chunk(const Deadline& deadline) {
  const auto cut = [this] {
    body_ = Body::cut;
    return std::nullopt;
  };
  if (!in_chunk_) {
    size_t line_end = 0;
    while ((line_end = buffer_.find("\r\n")) == std::string::npos) {
      if (!fill(deadline)) return cut();
    }
    const std::string line = take(line_end + 2);
    const auto parsed = std::from_chars(line.data(), line.data() + line_end, left_, 16);
    if (parsed.ec != std::errc() || parsed.ptr != line.data() + line_end) {
      throw std::runtime_error("not a chunk size: \"" + line + "\"");
    }
    in_chunk_ = left_ > 0;
    if (left_ == 0) {
      if (!fill_to(2, deadline)) return cut();
      if (take(2) != "\r\n") throw std::runtime_error("trailers or garbage after the last chunk");
      body_ = Body::complete;
      return std::nullopt;
    }
  }
  if (buffer_.empty() && !fill(deadline)) return cut();
  std::string bytes = take(std::min(left_, buffer_.size()));
  left_ -= bytes.size();
  if (left_ == 0) {
    if (!fill_to(2, deadline)) return cut();
    if (take(2) != "\r\n") throw std::runtime_error("a chunk is longer than its size");
    in_chunk_ = false;
  }
  return bytes;
}

std::optional<std::string> Connection::read_body_some(int patience_ms) {
  const Deadline deadline(patience_ms);
  if (body_ == Body::chunked) return next_chunk(deadline);
  if (body_ != Body::length && body_ != Body::until_close) return std::nullopt;
  if (buffer_.empty() && !fill(deadline)) {
    body_ = body_ == Body::length ? Body::cut : Body::complete;
    return std::nullopt;
  }
  if (body_ == Body::until_close) return take(buffer_.size());
  std::string bytes = take(std::min(left_, buffer_.size()));
  left_ -= bytes.size();
  if (left_ == 0) body_ = Body::complete;
  return bytes;
}

std::string Connection::read_body_to_end(int patience_ms) {
  const Deadline deadline(patience_ms);
  std::string all;
  while (const auto bytes = read_body_some(deadline.left_ms())) all += *bytes;
  return all;
}

Response Connection::read_response(int patience_ms, bool answers_head) {
  Response response;
  response.head = read_head(patience_ms, answers_head);
  response.body = read_body_to_end(patience_ms);
  response.complete = complete();
  return response;
}

std::optional<std::string> Connection::read_raw(int patience_ms) {
  if (buffer_.empty() && !fill(Deadline(patience_ms))) return std::nullopt;
  return take(buffer_.size());
}

bool Connection::stays_silent(int for_ms) {
  if (!buffer_.empty()) return false;
  // Session tickets make a TLS socket readable without a byte for the caller.
  try {
    fill(Deadline(for_ms));
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

void Connection::half_close() {
  if (ssl_) SSL_shutdown(ssl_.get());
  ::shutdown(fd_.get(), SHUT_WR);
}

void Connection::close() {
  if (ssl_ && fd_.is_open()) SSL_shutdown(ssl_.get());
  ERR_clear_error();
  fd_.close();
}

void Connection::reset() { fd_.close_with_rst(); }

Response exchange(const Endpoint& endpoint, const Request& request) {
  Connection connection(endpoint);
  connection.send(bytes_of(request));
  return connection.read_response(kPatienceMs, request.method == "HEAD");
}

}  // namespace harness
