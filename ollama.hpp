// Ollama's side of a turn: one HTTP/1.1 request and its streamed response, read on the thread that
// serves the client, over connections that are used again.
//
// With several addresses the least busy one is asked first (upstreams.hpp). As long as nothing of an answer
// can have reached the client, the request goes on to another address: when this one can't be reached or
// breaks off before the end of its head, or when it refuses with 503 (busy) or 404 (it lacks the model). One
// that is silent is waited for, for it may be loading the model. Each address is tried once, and all of them
// together within the deadlines of the caller. When no one takes the request, a refusal is the answer: a 503
// rather than a 404, for it may be over soon.
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
#include "upstreams.hpp"

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
    unreachable,  ///< no connection to any address, or none that answered
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
  /// Why a request failed, for the log; with several addresses it names the last one.
  const std::string& detail() const { return detail_; }

 private:
  friend class Ollama;
  enum class Step { connect, connecting, send, receive_head, body, ended };

  struct Refusal {
    size_t upstream;
    bool busy;
  };

  Generation(Ollama& ollama, std::string_view method, std::string_view path, std::string body, std::optional<size_t> only);
  void aim_at(size_t upstream);
  bool pass_on_refusal();
  std::optional<size_t> back_to_refusal();
  Event connect_next();
  Event finish_connecting(Waiter& waiter, Deadline deadline);
  Event send_request(Waiter& waiter, Deadline deadline);
  Event receive_head(Waiter& waiter, Deadline deadline);
  Event fail(Event event, std::string detail);
  bool try_again();
  void break_off(std::string detail);
  void note(std::string detail);
  void finish();

  Ollama& ollama_;
  const std::string method_, path_;
  const bool probe_;  // of one address
  const Clock::duration connect_max_;
  Upstreams::Tried tried_;
  std::optional<size_t> upstream_;  // that has the request; it is counted there
  std::optional<Refusal> refusal_;  // of one that was left for others
  std::string request_head_;        // for the present address
  std::string request_body_;
  size_t unsent_ = 0;  // bytes of both, from the end
  Step step_ = Step::connect;
  UniqueFd fd_;
  bool may_reuse_ = true;  // a kept connection
  bool reused_ = false;
  std::vector<sockaddr_storage> ways_;  // IP addresses of the present one, not yet tried
  std::string connect_error_;
  std::optional<Deadline> connect_deadline_;
  Deadline way_deadline_ = Deadline::never();  // of the present way: its share of the time that was left
  http1::ResponseHeadReader head_;
  http1::BodyDecoder body_ = http1::BodyDecoder::none();
  std::string_view unread_;  // of receive()'s buffer or head_.rest()
  bool broken_ = false;
  bool reusable_ = false;
  std::string detail_;
};

/// What the end of a wait for Ollama means; Event::bytes for Wake::ready.
Generation::Event event_of(Wake wake);

/// What a person who watches wants to know of one address.
struct OllamaState {
  std::string url;
  size_t running;  ///< generations
  bool resting;    ///< it has failed and not answered since
};

/// The Ollamas and the idle connections to them. Any thread, concurrently; must outlive its Generations.
/// Logs when an address fails (ollama_away) and when it answers again (ollama_back), once each.
class Ollama {
 public:
  /// At least one address.
  explicit Ollama(std::vector<OllamaAddress> addresses);

  /// Prepares `method` on the API's path ("/chat"); nothing is sent before read_head().
  std::unique_ptr<Generation> start(std::string_view method, std::string_view path, std::string body);
  /// The same for this address only, to look whether it is usable: the caller says so, not the log.
  std::unique_ptr<Generation> start_at(size_t address, std::string_view method, std::string_view path, std::string body);
  /// In the order in which they were given.
  std::vector<OllamaState> addresses();
  /// Closes connections that nobody has used for a while; call it about once a second.
  void close_idle();
  /// Begins to connect for requests to come, where few connections are idle, and waits for nothing.
  void connect_ahead();

 private:
  friend class Generation;
  struct Idle {
    UniqueFd fd;
    Clock::time_point since;
  };
  struct Resolved {
    std::vector<sockaddr_storage> list;
    std::string error;
  };
  struct Upstream {
    OllamaAddress address;  // never changed
    // Guarded by mutex_:
    std::vector<Idle> idle;  // the last one used is at the back, and is used next
    std::vector<sockaddr_storage> resolved;
    Clock::time_point resolved_at;
  };

  std::optional<size_t> choose(const Upstreams::Tried& tried, bool resting_too);
  void leave(size_t upstream, UniqueFd reusable);
  void fail(size_t upstream, const std::string& reason, bool quietly);
  void answer(size_t upstream);
  UniqueFd take_idle(size_t upstream);
  Resolved resolve(size_t upstream);

  std::vector<Upstream> upstreams_;  // as many for ever
  std::mutex mutex_;
  Upstreams choice_;  // guarded by mutex_
};
