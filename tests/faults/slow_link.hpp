// A relay to a server of 127.0.0.1 whose answers come late. Threads: one that accepts, one a connection.
#pragma once

#include <atomic>
#include <list>
#include <thread>

#include "tests/harness/net.hpp"

namespace faults {

class SlowLink {
 public:
  explicit SlowLink(int server_port);
  ~SlowLink();
  SlowLink(const SlowLink&) = delete;
  SlowLink& operator=(const SlowLink&) = delete;
  [[nodiscard]] int port() const { return port_; }
  // What the server sends from now on reaches the client so much later. Any thread.
  void delay_answers(int ms) { delay_ms_ = ms; }

 private:
  struct Link {
    harness::Fd client, server;
    std::atomic<bool> ended{false};
    std::thread thread;
  };
  void accept_connections();
  void relay(Link& link);

  const int server_port_;
  harness::Fd listener_;
  int port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<int> delay_ms_{0};
  std::list<Link> links_;  // the accepting thread's, until it ends
  std::thread acceptor_;
};

}  // namespace faults
