// chatterd under a service manager: systemd's two small protocols, by hand, so that no library is needed.
//
// Sources: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3). Both only read variables of the
// environment; where these are not set nothing happens, and chatterd is an ordinary program.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "net.hpp"
#include "result.hpp"

/// Tells the service manager how chatterd is. One thread, but for the constructor's, which may come before.
class ServiceManager {
 public:
  /// Reads NOTIFY_SOCKET (a path, or an abstract address with a leading @), WATCHDOG_USEC and WATCHDOG_PID and
  /// takes them out of the environment. Call it before any thread is started.
  ServiceManager();

  /// READY=1: it serves; also after reloading().
  void ready();
  /// RELOADING=1 with the time.
  void reloading();
  /// STOPPING=1. The end may take this long, whatever the unit's TimeoutStopSec says.
  void stopping(milliseconds at_most);
  /// STATUS=: what `systemctl status` shows. Sent only when it has changed, and once a second at most, so call
  /// it again.
  void set_status(const std::string& status);

  /// How often the manager wants to hear alive() at the least; nothing: it does not ask for it.
  std::optional<milliseconds> watchdog() const { return watchdog_; }
  /// WATCHDOG=1: the self-check has been passed just now.
  void alive();

 private:
  void send(std::string_view message);

  std::string address_;  // as in sockaddr_un; empty: none
  UniqueFd socket_;
  std::optional<milliseconds> watchdog_;
  std::string status_;
  Clock::time_point status_sent_at_{};
};

/// What systemd passes to chatterd, closed on exec; what it does not pass is not open.
struct Passed {
  UniqueFd socket;       ///< on which it listens (chatterd.socket), not blocking
  UniqueFd cpu_latency;  ///< OpenFile=/dev/cpu_dma_latency, for cpu_latency.hpp; known by its name, cpu_dma_latency
};

/// Takes LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES out of the environment. What is passed but can't be used is a wrong
/// configuration. Call it once, before any thread is started.
Result<Passed, StartProblem> take_passed();
