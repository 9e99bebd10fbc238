// An HTTP/1.1 client on raw sockets, plain or TLS, that shares no code with chatterd: it can send what no
// library would and sees every byte of an answer. Not thread-safe: one thread a connection.
// Failures of the transport throw std::runtime_error; what the server answered is returned, never judged.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/harness/net.hpp"
#include "tests/harness/scripted_ollama.hpp"  // Headers

namespace harness {

struct FreeTlsSession {
  void operator()(SSL_SESSION* session) const { SSL_SESSION_free(session); }
};
// What a TLS client shows to shorten its next handshake.
using TlsSession = std::unique_ptr<SSL_SESSION, FreeTlsSession>;

// Where chatterd serves.
struct Endpoint {
  std::string address = "127.0.0.1";
  int port = 0;
  bool tls = true;
};

struct ResponseHead {
  int status = 0;
  std::string version;     // "HTTP/1.1"
  Headers headers;         // names as they were sent
  std::string raw;         // all of it, for failure messages
  // The value of the header, whatever the case of its name; empty when missing.
  [[nodiscard]] std::string header(std::string_view name) const;
  [[nodiscard]] size_t count(std::string_view name) const;
};

struct Response {
  ResponseHead head;
  std::string body;
  bool complete = false;  // ended as its framing says: last chunk, or all of Content-Length
  [[nodiscard]] int status() const { return head.status; }
  // For failure messages.
  [[nodiscard]] std::string text() const { return head.raw + body + (complete ? "" : "\n[cut off]"); }
};

struct Request {
  std::string method = "GET";
  std::string path = "/";
  std::string body = {};
  Headers headers = {};  // added to Host, and to Content-Length where there is a body or the method is POST
};

// The bytes of a request. `with_length` false leaves Content-Length to the caller.
std::string bytes_of(const Request& request, bool with_length = true);

// One connection and the answer that is being read from it.
class Connection {
 public:
  explicit Connection(const Endpoint& endpoint, SSL_SESSION* earlier = nullptr);  // connects and shakes hands
  Connection(Connection&&) = default;
  Connection& operator=(Connection&&) = default;
  ~Connection() { close(); }

  // False when the peer takes no more; an answer may still be there to read.
  bool send(std::string_view bytes);
  // The same in pieces of `size` bytes, each a segment (and a TLS record) of its own.
  bool send_in_pieces(std::string_view bytes, size_t size);

  // Reads status line and headers; skips 1xx answers. For the answer to HEAD say so.
  ResponseHead read_head(int patience_ms = kPatienceMs, bool answers_head = false);
  // The next decoded bytes of the body, as soon as there are any; nothing at its end.
  std::optional<std::string> read_body_some(int patience_ms = kPatienceMs);
  std::string read_body_to_end(int patience_ms = kPatienceMs);
  // After the end of the body: did it end as its framing says?
  [[nodiscard]] bool complete() const { return body_ == Body::complete; }
  Response read_response(int patience_ms = kPatienceMs, bool answers_head = false);
  // Bytes that came after the response, or nothing once the server has closed.
  std::optional<std::string> read_raw(int patience_ms = kPatienceMs);
  // Nothing to read and still open for so long.
  bool stays_silent(int for_ms);

  // The serial numbers of the certificates that the server has shown, as their "names", its own first.
  [[nodiscard]] std::vector<long> certificate_serials() const;

  // Of what was read so far; null as long as there is none to resume.
  [[nodiscard]] TlsSession session() const;
  // Whether the handshake was short.
  [[nodiscard]] bool resumed() const { return SSL_session_reused(ssl_.get()) == 1; }

  void half_close();  // FIN, but goes on reading (over TLS: close_notify)
  void close();       // FIN
  void reset();       // RST

 private:
  enum class Body { none, length, chunked, until_close, complete, cut };
  bool fill(const Deadline& deadline);  // false at the end of the file
  bool fill_to(size_t count, const Deadline& deadline);
  std::optional<std::string> next_chunk(const Deadline& deadline);
  std::string take(size_t count);
  void start_body(const ResponseHead& head, bool answers_head);

  struct FreeSsl {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };
  Fd fd_;
  std::unique_ptr<SSL, FreeSsl> ssl_;
  std::string buffer_;
  Body body_ = Body::none;
  size_t left_ = 0;  // of the present chunk, or of the length
  bool in_chunk_ = false;
};

// One request on a connection of its own.
Response exchange(const Endpoint& endpoint, const Request& request);

}  // namespace harness
