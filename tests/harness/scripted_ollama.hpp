// An HTTP server in the place of Ollama, on a port of 127.0.0.1, whose behaviour is a script: a callable
// that is given each request's connection and says what bytes go out, when, and how the connection ends.
//
// Threads: one that accepts, one for each connection; scripts run on the latter, so several run at once.
// The methods of ScriptedOllama may be called from any thread. Scripts outlive the test that set them as
// long as their connection does: they capture by value (Gate is a handle and made for that).
#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/harness/net.hpp"

namespace harness {

using Headers = std::vector<std::pair<std::string, std::string>>;

// What chatterd sent in one request, and what became of its connection.
struct OllamaRequest {
  std::string method;
  std::string path;
  Headers headers;  // names in lower case
  std::string body;
  Clock::time_point arrived;
  int connection = 0;  // counts from 1; equal numbers mean a connection that was used again
  [[nodiscard]] std::string header(std::string_view lower_name) const;  // empty if missing
};

// A door that a test opens for the scripts waiting at it. Copies are handles of the same door.
class Gate {
 public:
  Gate() : open_(std::make_shared<std::atomic<bool>>(false)) {}
  void open() const { *open_ = true; }
  [[nodiscard]] bool is_open() const { return *open_; }

 private:
  std::shared_ptr<std::atomic<bool>> open_;
};

// The record of one request, written by its connection's thread and read by tests.
class Exchange {
 public:
  explicit Exchange(OllamaRequest request) : request_(std::move(request)) {}
  [[nodiscard]] const OllamaRequest& request() const { return request_; }
  // When chatterd was seen to close the connection; empty while it is open or was closed by the script.
  [[nodiscard]] std::optional<Clock::time_point> client_left() const;
  [[nodiscard]] bool script_ended() const { return script_ended_; }

 private:
  friend class Conn;
  friend class ScriptedOllama;
  void note_client_left();
  const OllamaRequest request_;
  mutable std::mutex mutex_;
  std::optional<Clock::time_point> client_left_;  // guarded by mutex_
  std::atomic<bool> script_ended_{false};
};

// What a script holds: one request and the way to answer it. Every call notices a client that has left
// and then ends the script by throwing ScriptOver, which the server catches.
class Conn {
 public:
  struct ScriptOver {};

  [[nodiscard]] const OllamaRequest& request() const { return exchange_->request(); }
  // The status line and these headers, exactly; the empty line too.
  void head(int status, const Headers& headers);
  void stream_head(int status = 200, const std::string& content_type = "application/x-ndjson");
  void chunk(std::string_view bytes);  // one HTTP chunk
  void line(std::string_view text);    // a chunk of the text and "\n"
  void end_chunks();                   // the last chunk: a clean end, the connection lives on
  void respond(int status, std::string_view body, const std::string& content_type = "application/json");
  void raw(std::string_view bytes);  // as they are
  void fin();                        // closes; the peer reads an end of file
  void rst();                        // closes; the peer reads "connection reset"
  void wait(const Gate& gate);       // until the test opens it, however long
  void pause(int ms);                // lets the time pass that the behaviour under test is about
  void wait_until_client_leaves();

 private:
  friend class ScriptedOllama;
  Conn(Fd& fd, std::shared_ptr<Exchange> exchange, const std::atomic<bool>& stopping)
      : fd_(fd), exchange_(std::move(exchange)), stopping_(stopping) {}
  void wait_for(const std::function<bool()>& condition);
  Fd& fd_;
  std::shared_ptr<Exchange> exchange_;
  const std::atomic<bool>& stopping_;
};

using Script = std::function<void(Conn&)>;

class ScriptedOllama {
 public:
  explicit ScriptedOllama(Fd bound = bind_loopback(0));  // listens there
  ~ScriptedOllama();  // ends all connections and waits for all scripts
  ScriptedOllama(const ScriptedOllama&) = delete;
  ScriptedOllama& operator=(const ScriptedOllama&) = delete;

  [[nodiscard]] int port() const { return port_of(listener_); }
  [[nodiscard]] std::string url() const { return url_of(listener_); }

  // The script for every further request but the health checks, which have scripts of their own.
  void answer_with(Script script);
  // GET /api/version and /api/tags; an empty script means the healthy answers.
  void answer_health_with(Script script);

  // Connections taken so far, the closed ones too.
  [[nodiscard]] int connections() const { return connections_; }
  // The requests so far, health checks left out, oldest first.
  [[nodiscard]] std::vector<std::shared_ptr<Exchange>> exchanges() const;
  // Those whose body holds `text` (an appID never reaches Ollama: use the model's name or the prompt).
  [[nodiscard]] std::vector<std::shared_ptr<Exchange>> exchanges_with(std::string_view text) const;
  // Waits for the n-th such request (from 1); throws when it does not come.
  std::shared_ptr<Exchange> wait_for_request(std::string_view text, size_t n = 1) const;

 private:
  struct Worker {
    Fd fd;
    std::atomic<bool> ended{false};
    std::thread thread;
  };
  void accept_connections();
  void serve(Worker& worker, int number);
  void run_script(Fd& fd, const std::shared_ptr<Exchange>& exchange);

  Fd listener_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> connections_{0};
  mutable std::mutex mutex_;
  Script script_;                                     // guarded by mutex_
  Script health_script_;                              // guarded by mutex_
  std::vector<std::shared_ptr<Exchange>> exchanges_;  // guarded by mutex_
  std::list<Worker> workers_;                         // touched by the accepting thread only, until it ends
  std::thread acceptor_;
};

}  // namespace harness
