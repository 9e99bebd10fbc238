// A relay between chatterd and PostgreSQL, or Ollama, that can fail as networks and servers do.
// Threads: one that accepts and one for each connection. Methods may be called from one thread.
#pragma once

#include <atomic>
#include <list>
#include <string>
#include <thread>

#include "tests/harness/net.hpp"

namespace harness {

class TcpProxy {
 public:
  TcpProxy(std::string address, int port);  // where the server is
  ~TcpProxy();
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;

  [[nodiscard]] int port() const { return port_; }
  // Each returns once it is in force. Connections that are open stay as they are, but for cut().
  void pass();    // new connections are relayed, bytes flow
  void refuse();  // new connections get "connection refused"
  void freeze();  // bytes stop in both directions, new connections are accepted and hang
  void cut();     // all open connections are reset
  void outage();  // refuse and cut: the server is gone
  [[nodiscard]] int open_connections() const { return open_; }
  // How often, over all connections, chatterd sent after the server had answered, or first of all.
  [[nodiscard]] int round_trips() const { return round_trips_; }

 private:
  enum class Mode { pass, refuse, freeze };
  struct Link {
    Fd client, server;
    std::atomic<bool> ended{false};
    std::thread thread;
  };
  void set(Mode mode);
  void accept_connections();
  void relay(Link& link, int generation);
  bool pump(int from, int to);

  const std::string address_;
  const int server_port_;
  Fd listener_;  // the accepting thread's, after construction
  int port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<Mode> wanted_{Mode::pass};
  std::atomic<Mode> in_force_{Mode::pass};
  std::atomic<int> generation_{0};  // a link of an older generation is cut
  std::atomic<int> open_{0};
  std::atomic<int> round_trips_{0};
  std::list<Link> links_;  // the accepting thread's
  std::thread acceptor_;
};

}  // namespace harness
