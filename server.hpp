// The HTTPS server: accepts clients, reads their requests under limits, and lets cpp-httplib route and
// answer each on a thread of the pool.
//
// cpp-httplib alone gives a thread to every connection, idle or not, and its timeouts are per read. So
// the way in is chatterd's own. Greeters, a few threads with an epoll of their own, accept clients, make the
// TLS handshake and read the first request's head. The door, which is one thread and an epoll, keeps the connections
// that wait with nothing to do, and accepts where there is no TLS. When bytes of a request have come, a worker takes
// the connection. When a whole request is there, httplib's process_request() does the rest on that worker through a
// stream of ours; while an answer comes at the pace of reading, the worker lends it to the pump.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <httplib.h>

#include "connection.hpp"
#include "cpu_latency.hpp"
#include "lender.hpp"
#include "live.hpp"
#include "metrics.hpp"
#include "net.hpp"
#include "pulse.hpp"
#include "pump.hpp"
#include "result.hpp"
#include "tls.hpp"
#include "workers.hpp"

class Server;

/// When a client may try again after a 503, in seconds: about as long as a restart takes.
constexpr const char* kRetryAfterSeconds = "2";

/// One of those counted in `count`, as long as it lives.
class Counted {
 public:
  explicit Counted(std::atomic<size_t>& count) : count_(count) { ++count_; }
  ~Counted() { --count_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  std::atomic<size_t>& count_;
};

/// One request being served: what its handler may know of the client and tell the log. Used only by
/// the thread that serves the request, from which Exchange::current() finds it, and in carry() by the
/// thread that has the stream.
class Exchange : public Waiter {
 public:
  static Exchange& current();

  /// Waits on `fd`, the client and the server's stop at once.
  Wake wait(int fd, short events, Deadline deadline) override;
  /// Steps run on this thread in an answer that hurries, otherwise on one of the pump's. What a step
  /// writes must not wait for a client that reads slowly: that is this thread's work.
  Wake carry(int fd, Deadline deadline, const std::function<Step()>& step) override;
  /// For work that goes on after the client has left: waits for the server's stop alone.
  Wake wait_without_client(Deadline deadline);
  /// Whether the client has ended its connection, or its side of it.
  bool client_left();
  /// From here on a client that ends its side is not waiting for an answer any more.
  void begin_stream();
  bool streaming() const { return streaming_; }
  /// Sends what httplib has written so far; until then it is held back, so that what belongs together
  /// becomes one TLS record and one packet. False: the client is gone.
  bool flush();

  const std::string& id() const { return id_; }
  const std::string& client() const { return connection_.address(); }
  /// The request's body, once: httplib's Request has none (http1.hpp).
  std::string take_body() { return connection_.reader.take_body(); }
  const std::string& authorization() const { return connection_.reader.authorization(); }
  /// A POST that had neither a length nor chunks.
  bool length_missing() const { return connection_.reader.length_missing(); }
  /// HTTP/1.0 knows no chunks: a stream to it ends with the connection.
  bool version_1_0() const { return connection_.reader.version_1_0(); }

  // For the log line and the metrics, set as they become known:
  metrics::Route route = metrics::Route::other;
  int status = 0;
  std::string reason;  ///< why the request failed; no text of a message
  long lines = -1;     ///< of a stream; -1: not one
  /// A limit refuses the request.
  void refused_by(metrics::Limit limit);
  /// The client did not wait for its answer, for which nobody here is to blame.
  void note_client_left();
  /// Of a stream: Ollama is asked now, and where few wait for it this thread is a real-time one until the answer has
  /// begun, or the request is over; and the first bytes of the answer go to the client now.
  void note_asked();
  void note_first_bytes();
  bool has_first_bytes() const { return first_token_ms_ >= 0; }

 private:
  friend class Server;
  class Stream;
  Exchange(Server& server, Connection& connection);
  ~Exchange() override;
  bool hold(std::string_view data);
  // For a next request, as far as can be said now.
  bool keeps_connection() const;
  void finish() const;
  bool failed() const;
  Wake carry_hurried(int fd, Deadline deadline, const std::function<Step()>& step);

  Server& server_;
  Connection& connection_;
  const std::string id_;
  const Clock::time_point began_ = Clock::now();
  Clock::time_point asked_ = began_;
  double first_token_ms_ = -1;  // since the request had come
  double ollama_ms_ = -1;       // since Ollama was asked
  std::string_view limit_;      // the option that refused it
  bool left_ = false;
  std::string held_;
  bool streaming_ = false;
  std::optional<Counted> awaits_first_bytes_;
  Lender::Loan real_time_;
  bool gone_ = false;
  bool lent_ = false;  // to the pump, where nothing may wait
  bool reading_ = false;  // its answer comes at the pace of reading, and is for the pump
};

class Server : public httplib::Server {
 public:
  struct Settings {
    std::string host;  ///< empty: all addresses
    size_t port;
    size_t body_bytes_max;
    size_t body_memory_max;  ///< of all bodies together, as http1::BodyMemory counts
    size_t connections_max;
    size_t threads_max;
    milliseconds header_timeout, body_timeout, idle_timeout, write_timeout;
  };

  /// `tls` is null for plain HTTP. Register handlers before start().
  Server(Settings settings, SslContext tls);
  ~Server() override;

  /// Takes the port. Or, in its place:
  std::optional<StartProblem> bind();
  /// Serves a socket that listens already and is not blocking. Who made it may go on listening when the server
  /// has stopped: what has not been accepted is then theirs.
  void adopt(UniqueFd listener);
  /// The address it serves, such as https://[::]:443. After bind() or adopt().
  std::string url() const;
  /// A connection's first request is answered by its greeter, not by a worker, if it is a GET of this path: to hand it over
  /// costs more than the answer. Its handler must wait for nothing. Before start().
  void answer_at_once(std::string path) { answered_at_once_ = std::move(path); }
  /// The thread of an answer that goes on without it makes ready what the next requests will need: a thread, and what
  /// `make` makes, which waits for nothing and does not throw. Before start().
  void make_ready_by(std::function<void()> make) { make_ready_ = std::move(make); }
  /// Starts the pump's express thread (pump.hpp) and those of the lender, which inherit the caller's scheduling: it is to
  /// be real time. Before start(), if at all.
  void use_real_time();
  /// Keeps processors awake for clients that begin a handshake or a stream, by this device (cpu_latency.hpp). Before
  /// start(), if at all.
  void use_cpu_latency(UniqueFd device);
  /// Begins to accept clients and returns.
  void start();
  /// Whether nothing has been served for a while, so that no thread is left of the pool. After start().
  bool at_rest() { return workers_->threads() == 0; }
  /// What is open and at work now, for the metrics. Any thread, after start().
  struct Use {
    size_t connections, connections_max;
    size_t threads, threads_max;  ///< that serve requests
    size_t waiting;               ///< requests for a thread
  };
  Use use();

  // For a reload, after start(), any thread. What is under way goes on as it began:
  /// All of the settings but host and port.
  void set_limits(const Settings& settings);
  /// For connections from now on; only for a server that has TLS. Its tickets' keys are new too, so clients make one
  /// full handshake and see the new certificate.
  void set_tls(SslContext tls);

  /// Tries whether it works, and names what does not ("" when all does): the door, a greeter and each of the pump's threads
  /// must have taken a turn within `patience` of being asked, and a request through the routing must be answered, on
  /// this thread. None of these ever waits for a client, Ollama, the database or a free thread, nor
  /// needs the port, so a server that is full, short of descriptors or all busy with streams passes; one whose door,
  /// greeters or pump are stuck, or whose locks are held for ever, does not, or the call itself does not return. Workers are
  /// not asked: one may rightly be busy for as long as an answer takes. After start(), always by the same thread.
  std::string_view self_check(Clock::duration patience);

  /// Accepts no more, lets requests go on for `drain`, those too whose first bytes are on their way, then orders
  /// streams to end, and returns when all have, or false when `ending` is over. Any thread, once.
  bool stop(milliseconds drain, milliseconds ending);
  /// What `ending` is to be at least: for streams on a machine that is full.
  static constexpr std::chrono::seconds kEndingMin{10};

 private:
  friend class Exchange;
  using Held = std::unique_ptr<Connection>;

  /// As epoll_ctl(2); the event's data is `who`.
  static bool watch(const UniqueFd& epoll, int operation, int fd, std::uint32_t events, const void* who);

  // The door, on its own thread (door.cpp):
  void keep_door();
  void accept_clients();
  void open(Held connection);
  int handle_deadlines();
  void move_to(Connection::Waiting::iterator place, Clock::time_point due);
  void hang_up(Connection::Waiting::iterator place);
  bool evict_idle();
  void say_full();
  void pause_accepting(int error);
  void stop_accepting();
  void close_listener();

  // On the door or a greeter:
  Held accept_one();
  UniqueFd accept_socket(std::string& address);
  Held admit(UniqueFd socket, std::string address);
  void hand_to_worker(Held connection);
  void give_listener(bool to_greeters);

  // Serving, on a worker or greeter (serving.cpp):
  void serve(Held connection);
  void keep_greeting();
  void rest_in_crowd(Clock::duration worked);
  void greet(Held connection);
  bool answers_at_once(const Connection& connection) const;
  void leave(Held connection);
  bool advance(Held& connection, int patience_ms);
  Connection::Io receive(Connection& connection);
  bool next_request_comes(const Connection& connection, int patience_ms);
  bool answer(Connection& connection);
  void refuse(Held connection);
  void linger(Held connection);
  void park(Held connection, std::uint32_t events);
  Held take(Connection* connection);
  bool process(Exchange::Stream& stream, const std::string& address);
  bool answers_itself();

  const std::string host_;
  const size_t port_;
  const bool has_tls_;
  std::atomic<size_t> connections_max_;
  const size_t threads_max_;  // at the start
  const size_t processors_;   // 1 where their number is not known
  std::string answered_at_once_;
  std::function<void()> make_ready_;
  http1::BodyMemory body_memory_;
  Live<Connection::Limits> limits_;
  Live<SslContext> tls_;
  std::mutex listener_mutex_;  // held while a greeter accepts, and when the listener goes from one to the other
  std::atomic<bool> greeters_accept_{false};  // changed under listener_mutex_
  UniqueFd listener_;                         // likewise, once it serves
  UniqueFd epoll_;     // of the door
  UniqueFd greeting_;  // the greeters', for connections on the way to their first request
  Pulse door_pulse_;
  Pulse greeters_pulse_;  // one answers for all: which one takes an event is the kernel's choice
  UniqueFd stop_event_;  // eventfd: readable once streams have to end
  Clock::time_point accept_again_at_{};  // used by the door only
  Clock::time_point accept_told_at_{};   // likewise
  Clock::time_point full_told_at_{};     // likewise
  Clock::time_point next_idle_close_{};  // likewise: no idle connection is closed for its age before
  std::atomic<bool> draining_{false};  // nothing is accepted any more
  std::atomic<bool> closed_{false};    // the door and the greeters end
  std::atomic<size_t> connections_{0};
  std::atomic<size_t> awaiting_{0};  // streams of which nothing has come yet
  std::atomic<size_t> hurried_{0};   // answers that come as fast as they can, each on its own thread

  std::mutex mutex_;
  std::condition_variable served_;
  // Guarded by mutex_:
  Connection::Waiting waiting_;  // the connections that stand at an epoll, by deadline
  size_t serving_ = 0;           // those that a worker has
  bool accepting_ = true;
  Clock::time_point last_requests_until_ = Clock::time_point::max();  // a new connection's deadline once it stops

  std::unique_ptr<Pump> pump_;
  std::unique_ptr<Lender> lender_;  // null: there is no real time
  std::unique_ptr<CpuLatency> cpu_latency_;  // null: its device can't be had
  std::unique_ptr<Workers> workers_;
  std::vector<std::thread> greeters_;
  std::thread door_;
};
