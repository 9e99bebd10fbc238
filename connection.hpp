// One client's connection: the bytes of a plain or TLS socket, and the requests read from them.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "http1.hpp"
#include "net.hpp"
#include "tls.hpp"

/// Belongs to one thread at a time: the one that serves it, or the server's door or greeters while it waits
/// for the client. Never blocks but in write().
class Connection {
 public:
  /// Where it is in its life; each phase has a deadline of its own.
  enum class Phase { opening, body, idle, lingering };
  enum class Io { done, wants_read, wants_write, closed };
  using Waiting = std::multimap<Clock::time_point, std::unique_ptr<Connection>>;

  /// What bounds each of its requests.
  struct Limits {
    size_t body_bytes_max;
    http1::BodyMemory* body_memory;  ///< of all connections; may be null
    milliseconds header_timeout, body_timeout, idle_timeout, write_timeout;
  };

  /// `ssl` is null for plain HTTP.
  Connection(UniqueFd socket, Ssl ssl, std::string address, std::shared_ptr<const Limits> limits);

  const Limits& limits() const { return *limits_; }
  /// For the next request; between two of them only.
  void set_limits(std::shared_ptr<const Limits> limits);

  int fd() const { return socket_.get(); }
  const std::string& address() const { return address_; }  ///< the client's, without a port

  /// Goes on with the TLS handshake; done at once without TLS or after it. When all that is missing of a handshake is
  /// the client's word that ends it, the connection dozes: that alone does not make the socket readable for poll and
  /// epoll, for the request comes right behind it.
  Io handshake();
  bool dozes() const { return dozes_; }
  /// Ends that, for a client that asks nothing: so that it gets its session ticket.
  void rouse();
  /// Reads what is there, as much as `buffer` takes; `bytes` is the part of it that was filled.
  Io read(std::span<char> buffer, std::string_view& bytes);
  /// Whether bytes that poll() does not know of are there to be read: OpenSSL may have taken in more than was asked for.
  bool has_unread() const { return ssl_ && SSL_has_pending(ssl_.get()) == 1; }
  /// Writes as much of `data` as the socket takes now and removes that from it. Io::done: all of it.
  Io write_some(std::string_view& data);
  /// Writes all of `data`, waiting while the client does not read, up to the deadline. False: the
  /// client is gone or too slow, and the connection is of no more use. With `until_half_close`, a
  /// client that has ended its side counts as gone; otherwise it may still wait for its answer.
  bool write(std::string_view data, Deadline deadline, bool until_half_close);
  /// Says goodbye and ends our side; what the client still sends may be read and thrown away.
  void finish_writing();

  http1::RequestReader reader;
  Phase phase = Phase::opening;
  Deadline deadline = Deadline::never();  ///< of the phase
  bool greeting = false;                  ///< it stands with the greeters until its first request
  bool timed_out = false;                 ///< the deadline of a body has passed
  bool expired = false;                   ///< idle for too long: the deadline is now its turn to be closed
  size_t lingered_bytes = 0;              ///< thrown away while lingering
  Waiting::iterator waiting;              ///< its place while nobody works on it
  int watched_by = -1;                    ///< the epoll that it was added to last

 private:
  Io ssl_outcome(int result);
  /// While corked, what is written waits for more, 200 ms at most (tcp(7)): so the session ticket, which ends
  /// a handshake, goes out in one packet with the first response.
  void cork(bool corked);
  void doze(bool dozes);

  UniqueFd socket_;
  Ssl ssl_;
  std::string address_;
  std::shared_ptr<const Limits> limits_;
  bool handshaken_;
  bool corked_ = false;
  bool dozes_ = false;
};
