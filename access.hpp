// Who gets in: API keys, and the rate of one client's requests.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "live.hpp"
#include "net.hpp"

/// The keys of --api-keys. Only their SHA-256 are on disk and in memory, so neither gives a key away.
class ApiKeys {
 public:
  /// Reads the file in the place of what was read before: a line is 64 hex digits, perhaps followed by
  /// a name; empty lines and those that begin with # are passed over. Returns what is wrong, as a
  /// sentence; then the keys from before stay. Any thread.
  std::optional<std::string> load(const std::string& file);

  /// Whether a request with this Authorization header is let in; every one is before the first load().
  /// Takes the same time for every wrong key. Any thread.
  bool allow(std::string_view authorization) const;
  /// From here on no key is needed. Any thread.
  void clear() { keys_.set(nullptr); }

 private:
  using Digest = std::array<unsigned char, 32>;
  Live<std::vector<Digest>> keys_;  ///< nothing: no keys are needed
};

/// Bounds the requests of each client: a bucket of tokens that fills again with time. Any thread.
class RateLimit {
 public:
  /// `per_second` 0: no limit. A client that was quiet may send twice as many at once.
  explicit RateLimit(size_t per_second) : per_second_(static_cast<double>(per_second)) {}

  /// Takes a token. Nothing: let in; else the seconds until it is worth trying again.
  std::optional<int> refuse(const std::string& client, Clock::time_point now = Clock::now());
  void set_rate(size_t per_second) { per_second_ = static_cast<double>(per_second); }

 private:
  struct Bucket {
    double tokens;
    Clock::time_point filled_at;
  };
  void forget_full(Clock::time_point now);

  std::atomic<double> per_second_;
  std::mutex mutex_;
  // Guarded by mutex_:
  std::unordered_map<std::string, Bucket> buckets_;
  Clock::time_point forget_again_at_{};
};

/// What counts as one client: an IPv4 address, or the /64 that an IPv6 subscriber has to himself.
std::string client_of(const std::string& address);
