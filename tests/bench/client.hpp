// One client of a server under test: HTTP/1.1 over TCP or TLS 1.3, kept alive as a phone's connection is, on
// a non-blocking socket in somebody else's epoll. All of a program's clients belong to one thread.
#pragma once

#include <openssl/ssl.h>
#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "http1.hpp"
#include "tests/bench/plan.hpp"
#include "tests/harness/net.hpp"

namespace bench {

// Where the server is.
struct Target {
  bool tls = false;
  std::string host;  // with the port, for the Host header
  sockaddr_storage address{};
  socklen_t address_length = 0;
};

// Of http://HOST:PORT or https://HOST:PORT. Nothing: not such a URL, or an unknown host.
std::optional<Target> parse_target(std::string_view url);

struct FreeTls {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* ssl) const { SSL_free(ssl); }
  void operator()(SSL_SESSION* session) const { SSL_SESSION_free(session); }
};
using TlsContext = std::unique_ptr<SSL_CTX, FreeTls>;

// For all clients together. Certificates are not verified. With `resume` each client keeps the latest
// session that the server gave it, and offers it when it connects again.
TlsContext make_tls_context(bool resume);

class Client {
 public:
  enum class Progress { waiting, complete, failed };
  using Take = std::function<void(std::string_view bytes, Clock::time_point read_at)>;

  // Its socket stands in `epoll` with `tag`, edge-triggered: each event asks for an advance().
  Client(const Target& target, SSL_CTX* tls, int epoll, std::uint64_t tag)
      : target_(target), tls_(tls), epoll_(epoll), tag_(tag) {}

  // Begins a request, connecting first if there is no connection. advance() must be called at once.
  void start(std::string request);
  // Goes on as far as the socket allows; `take` gets the body's bytes as they are read. Complete and failed
  // come once a request; after `failed` the connection is closed. Without a request it notices the server's
  // closing and returns `waiting`.
  Progress advance(const Take& take);
  // With TLS's and TCP's goodbye, as a client does that has no more to ask.
  void close();

  [[nodiscard]] int status() const { return head_.status(); }
  [[nodiscard]] bool resumed() const { return resumed_; }  // the session of this connection
  [[nodiscard]] const std::string& problem() const { return problem_; }

 private:
  enum class Step { idle, connecting, handshaking, exchanging };
  enum class Io { done, blocked, closed };

  bool connect();
  Progress fail(std::string problem);
  Io io_of(int result);
  Io handshake();
  void write();
  Io read(std::string_view& bytes);
  Progress read_answer(const Take& take);
  bool feed(std::string_view bytes, const Take& take, Clock::time_point read_at);
  static int keep_session(SSL* ssl, SSL_SESSION* session);
  friend TlsContext make_tls_context(bool resume);

  const Target& target_;
  SSL_CTX* tls_;
  int epoll_;
  std::uint64_t tag_;
  Step step_ = Step::idle;
  harness::Fd socket_;
  std::unique_ptr<SSL, FreeTls> ssl_;
  std::unique_ptr<SSL_SESSION, FreeTls> session_;  // for the next connection
  bool resumed_ = false;
  std::string request_;
  size_t sent_ = 0;  // of the request
  http1::ResponseHeadReader head_;
  http1::BodyDecoder body_ = http1::BodyDecoder::none();
  bool head_read_ = false;
  bool answer_read_ = false;
  std::string problem_;
};

}  // namespace bench
