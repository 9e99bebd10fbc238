// What chatterd counts while it works, for Prometheus.
//
// Any thread may add at any time: one relaxed atomic addition, no lock. Label values are from fixed sets, so
// that no client can make the series more. What has a state of its own, such as the pool of connections, is
// not counted here: admin.cpp asks for it when somebody wants to know.
//
// Source: Prometheus' documentation, "Exposition formats" (text format 0.0.4) and "Metric and label naming".
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace metrics {

class Counter {
 public:
  void add(std::uint64_t count = 1) { value_.fetch_add(count, std::memory_order_relaxed); }
  std::uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

class Gauge {
 public:
  void set(double value) { value_.store(value, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

/// How long things took.
class Histogram {
 public:
  /// The buckets' upper bounds: from a short request's millisecond to a long answer's quarter of an hour.
  static constexpr std::array<double, 18> kBoundsSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                                            1,     2.5,    5,     10,   30,    60,   120, 300,  900};
  void observe(std::chrono::nanoseconds took);
  /// How many lie in a bucket, not counting those of the buckets before it; the last has no bound.
  std::uint64_t in_bucket(size_t bucket) const { return buckets_[bucket].value(); }
  double sum_seconds() const { return static_cast<double>(sum_ns_.value()) / 1e9; }

 private:
  std::array<Counter, kBoundsSeconds.size() + 1> buckets_;
  Counter sum_ns_;
};

// ---- Labels ----

/// Everything that is no route of chatterd's is `other`.
enum class Route { top, llmprompt, getchatts, postchatt, llmchat, llmprep, other };
constexpr std::array<std::string_view, 7> kRoutes = {"/", "/llmprompt/", "/getchatts/", "/postchatt/", "/llmchat/", "/llmprep/", "other"};

/// The statuses that chatterd gives. /llmprompt/ passes on Ollama's, which may be any: "other".
constexpr std::array<int, 22> kStatuses = {200, 204, 400, 401, 404, 405, 408, 409, 411, 413, 414, 415, 417, 422, 429, 431, 499, 500, 501, 502, 503, 505};

/// A limit that refuses, named as its option.
enum class Limit { max_streams, streams_per_client, rate, turn_wait, max_history, max_body, body_memory, body_timeout, header_timeout, max_connections, db_pool };
constexpr std::array<std::string_view, 11> kLimits = {"max-streams", "streams-per-client", "rate",           "turn-wait",       "max-history", "max-body",
                                                      "body-memory", "body-timeout",       "header-timeout", "max-connections", "db-pool"};
std::string_view name_of(Limit limit);

/// How an answer of Ollama's failed. `status`: it answered with 400 or more. `error_line`: it said so in
/// mid-answer. `silent`, `too_long` and `too_large` are over --ollama-timeout, --reply-seconds, and
/// --max-line or --max-reply.
enum class OllamaError { unreachable, broken, silent, status, error_line, too_long, too_large };
constexpr std::array<std::string_view, 7> kOllamaErrors = {"unreachable", "broken", "silent", "status", "error_line", "too_long", "too_large"};

/// As DbFault.
enum class DatabaseError { refused, unavailable, failed };
constexpr std::array<std::string_view, 3> kDatabaseErrors = {"refused", "unavailable", "failed"};

template <class Label, size_t N>
class Counters {
 public:
  Counter& operator[](Label label) { return counters_[static_cast<size_t>(label)]; }
  const std::array<Counter, N>& all() const { return counters_; }

 private:
  std::array<Counter, N> counters_;
};

// ---- What is counted ----

/// A request that was answered, or whose client did not wait for the answer.
void count_request(Route route, int status, std::chrono::nanoseconds took);
/// The first bytes of a streamed answer: how long after the request had come, and of that, after Ollama was asked.
void count_first_token(Route route, std::chrono::nanoseconds after_request, std::chrono::nanoseconds after_asking);

inline Counters<Limit, kLimits.size()> refused;
inline Counter relayed_lines;
inline Counter relayed_bytes;  ///< as the client gets them, in their frames
inline Counters<OllamaError, kOllamaErrors.size()> ollama_errors;
inline Gauge ollama_up;  ///< 1: it answered when health.cpp last looked; else 0
inline Counters<DatabaseError, kDatabaseErrors.size()> database_errors;
inline Histogram database_call;  ///< with the wait for a connection
inline Gauge database_up;  ///< 1: it answered when it was last asked; else 0
inline Counter replies_stored;
inline Counter replies_retried;  ///< not stored at the first try
inline Counter replies_spooled;  ///< left to the state folder
inline Counter replies_lost;
inline Gauge certificate_ends_at;  ///< seconds since 1970-01-01 UTC; 0: plain HTTP

// ---- As text ----

/// Appends what is counted above, and the process' own metrics, in the text format.
void append_all(std::string& out, std::string_view version);

/// The building blocks, for what others add. A value is escaped as the format wants.
enum class Type { counter, gauge, histogram };
void append_head(std::string& out, std::string_view name, Type type, std::string_view help);
void append_sample(std::string& out, std::string_view name, double value);
void append_sample(std::string& out, std::string_view name, std::string_view label, std::string_view label_value, double value);

}  // namespace metrics
