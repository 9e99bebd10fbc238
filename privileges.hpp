// Root is for binding a port, reading a key, opening a device (cpu_latency.hpp) and real time for a few threads; nothing
// is served as root.
#pragma once

#include <optional>
#include <string>

#include "result.hpp"

/// Becomes `user` for good, with its own group alone, when this process is root; otherwise does
/// nothing. Empty: the user who called sudo, else nobody. Call it before any
/// thread is started; after a problem nothing may be served.
std::optional<StartProblem> drop_root(const std::string& user);

/// Real-time scheduling for the calling thread, and so for those that it starts meanwhile, as long as this lives. For
/// a thread that seldom runs, and briefly: a real-time thread comes before all others of the machine. SCHED_RR at the
/// lowest priority (sched(7)).
class RealTime {
 public:
  /// Where this process may: as root, or by RLIMIT_RTPRIO.
  RealTime();
  ~RealTime();
  RealTime(const RealTime&) = delete;
  RealTime& operator=(const RealTime&) = delete;
  bool granted() const { return granted_; }

 private:
  bool granted_;
};
