// The operator's listener (--admin): GET /healthz, /readyz and /metrics, on an address of its own and never
// on the public one.
//
// Two threads, one request a connection, a deadline for all of it: whoever reaches it can occupy it, but
// costs the server two descriptors and no memory. Beyond that the kernel's queue holds a few clients more.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "handlers.hpp"
#include "health.hpp"
#include "net.hpp"
#include "result.hpp"
#include "server.hpp"

/// Use it from one thread. What it is made with must outlive it, and `server` be started before it and
/// stopped after it.
class Admin {
 public:
  Admin(Server& server, Services& services, Health& health, std::string_view version)
      : server_(server), services_(services), health_(health), version_(version) {}
  ~Admin() { stop(); }
  Admin(const Admin&) = delete;
  Admin& operator=(const Admin&) = delete;

  /// Takes the address of --admin, HOST:PORT, an IPv6 address in brackets; port 0: a free one.
  std::optional<StartProblem> bind(const std::string& address);
  /// Begins to serve and says in the log where, unless nothing was bound.
  void start();
  /// Returns when nothing is being served any more.
  void stop();

 private:
  struct Answer;
  void run();
  void serve(UniqueFd socket);
  Answer answer(const std::string& path);
  Answer readiness();
  std::string metrics_text();

  Server& server_;
  Services& services_;
  Health& health_;
  const std::string version_;
  UniqueFd listener_;
  UniqueFd stop_event_;
  std::array<std::thread, 2> threads_;
};
