// systemd's side of sd_notify(3): the socket that NOTIFY_SOCKET names.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tests/harness/certificate.hpp"
#include "tests/harness/net.hpp"
#include "tests/harness/process.hpp"

namespace harness {

// Keeps all messages in their order. One thread.
class ServiceManager {
 public:
  explicit ServiceManager(bool abstract = false);
  // For the environment of who is to be watched; with `watchdog_ms` it is asked for a sign of life.
  [[nodiscard]] Environment environment(int watchdog_ms = 0) const;

  // All that has come.
  const std::vector<std::string>& messages();
  // The first from this one on that begins with the text; waits for it, and is empty when it does not come.
  std::string wait_for(std::string_view begin, size_t from = 0, int patience_ms = kPatienceMs);
  // How many of these have come.
  size_t count(std::string_view text);

 private:
  TempFolder folder_;
  std::string address_;
  Fd socket_;
  std::vector<std::string> messages_;
};

}  // namespace harness
