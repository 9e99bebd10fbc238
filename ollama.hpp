// Ollama's side of a turn: one HTTP/1.1 request and its streamed response, read on the thread that
// serves the client, over connections that are used again.
//
// Source: Ollama's API documentation, "Generate a chat completion" and "Generate a completion".
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "http1.hpp"
#include "net.hpp"
#include "result.hpp"

/// Where Ollama is, from a URL such as http://localhost:11434 or http://localhost:11434/api.
struct OllamaAddress {
  std::string host;
  std::string port;
  std::string api_path;  ///< of the API: "/api", or with a proxy's prefix before it
  std::string host_header;

  /// Nothing: not an http:// URL.
  static std::optional<OllamaAddress> parse(std::string_view url);
};

/// What to say of a URL that parse() refuses.
constexpr const char* kOllamaUrlWanted = "the value is not an http:// URL such as http://localhost:11434";

class Ollama;

/// One request under way. Belongs to one thread; when it is destroyed before its end the connection
/// is closed, at which Ollama stops generating.
class Generation {
 public:
  /// What a call below has come to.
  enum class Event {
    head,         ///< status and content type are known
    bytes,        ///< some of the body
    end,          ///< the body has ended as it should
    unreachable,  ///< no connection, or none that answered
    broken,       ///< the response is not HTTP, or the connection ended in the middle of it
    timed_out,    ///< the deadline has passed; the call may be made again with a later one
    client_left,
    stopping,
  };

  ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  /// Connects, sends the request, and reads the response up to the end of its head, as far as that
  /// goes by the deadline; call it again to go on. Anything but head and timed_out is final.
  Event read_head(Waiter& waiter, Deadline deadline);
  bool has_head() const { return step_ == Step::body || head_.status() >= 200; }
  int status() const { return head_.status(); }
  const std::string& content_type() const { return head_.content_type(); }

  /// After the head, without waiting: takes in what has arrived, as much as `buffer` takes. Then
  /// read_at_hand() gives it out piece by piece, views into that buffer, until it returns false; and
  /// then ended() says whether that was the body's end (Event::end or Event::broken).
  void receive(std::span<char> buffer);
  bool read_at_hand(std::string_view& bytes);
  std::optional<Event> ended();
  /// After the head: all of a small body, or what of it has come by the deadline or when it is
  /// over `bytes_max`.
  std::string read_small(Waiter& waiter, Deadline deadline, size_t bytes_max);
  /// Whether something has arrived that was not read yet.
  bool has_unread() const { return !unread_.empty(); }
  /// What receive() reads from.
  int fd() const { return fd_.get(); }

  /// Gives up the connection to Ollama: another request may use it, if the body has ended as it
  /// should; otherwise it is closed, at which Ollama stops. Not during a step of Waiter::carry(), which
  /// has the connection watched.
  void abandon();
  /// Why a request failed, for the log.
  const std::string& detail() const { return detail_; }

 private:
  friend class Ollama;
  enum class Step { connect, connecting, send, receive_head, body, ended };

  Generation(Ollama& ollama, std::string request);
  Event connect_next();
  Event finish_connecting(Waiter& waiter, Deadline deadline);
  Event send_request(Waiter& waiter, Deadline deadline);
  Event receive_head(Waiter& waiter, Deadline deadline);
  Event fail(Event event, std::string detail);
  bool try_again();
  void break_off(std::string detail);
  void finish();

  Ollama& ollama_;
  std::string request_;
  size_t sent_ = 0;
  bool all_sent_ = false;
  Step step_ = Step::connect;
  UniqueFd fd_;
  bool reused_ = false;
  std::vector<sockaddr_storage> addresses_;  // not yet tried
  std::optional<Deadline> connect_deadline_;
  http1::ResponseHeadReader head_;
  http1::BodyDecoder body_ = http1::BodyDecoder::none();
  std::string_view unread_;  // of receive()'s buffer or head_.rest()
  bool broken_ = false;
  bool reusable_ = false;
  std::string detail_;
};

/// What the end of a wait for Ollama means; Event::bytes for Wake::ready.
Generation::Event event_of(Wake wake);

/// The server Ollama and the idle connections to it. Any thread, concurrently; must outlive its
/// Generations.
class Ollama {
 public:
  explicit Ollama(OllamaAddress address) : address_(std::move(address)) {}

  /// Prepares `method` on the API's path ("/chat"); nothing is sent before read_head().
  std::unique_ptr<Generation> start(std::string_view method, std::string_view path, std::string_view body);
  /// Closes connections that nobody has used for a while; call it about once a second.
  void close_idle();

 private:
  friend class Generation;
  struct Idle {
    UniqueFd fd;
    Clock::time_point since;
  };
  struct Addresses {
    std::vector<sockaddr_storage> list;
    std::string error;
  };

  UniqueFd take_idle();
  void keep(UniqueFd fd);
  Addresses resolve();

  const OllamaAddress address_;
  std::mutex mutex_;
  // Guarded by mutex_:
  std::vector<Idle> idle_;  // the last one used is at the back, and is used next
  std::vector<sockaddr_storage> resolved_;
  Clock::time_point resolved_at_;
};
