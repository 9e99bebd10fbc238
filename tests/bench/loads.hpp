// What a load asks a server, and how it judges the answers. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tests/bench/plan.hpp"

namespace bench {

class Client;

// Figures on one line: " name=value" each.
class Figures {
 public:
  void add(std::string_view name, double value);
  // Both in `scale` of a second: the median and the 99th percentile of times in seconds ("nan" without any).
  void add_percentiles(const std::string& prefix, const std::string& unit, double scale, std::vector<double>& times_s);
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  std::string text_;
};

class Load {
 public:
  virtual ~Load() = default;
  // The bytes of the next request of a client. Jobs are numbered from 0 on.
  virtual std::string next_request(size_t client, long job) = 0;
  // Bytes of the body of its answer, which has the status 200.
  virtual void take(size_t client, std::string_view bytes, Clock::time_point read_at) = 0;
  // The answer is complete, its status is 200. Its latency counts from when the request was to begin.
  // Returns what is wrong with the answer, "" if nothing is.
  virtual std::string finish(size_t client, double latency_s) = 0;
  // Adds figures, most of them over the time that the whole load took.
  virtual void report(Figures& figures, double wall_s) = 0;
};

struct StreamSettings {
  std::string host;
  std::string path = "/llmchat/";
  std::string model;
  std::string app_id;             // stream i is of the conversation app_id + i
  bool one_conversation = false;  // client i's streams are all of the conversation app_id + i
  size_t prompt_bytes = 11;
};

// Answers streamed by /llmchat/, each checked token by token. Empty: the model's name is no plan.
std::unique_ptr<Load> make_streams(const StreamSettings& settings, size_t clients);

struct RequestSettings {
  std::string host;
  std::string path = "/";
  std::string body;         // with one it is a POST
  bool is_array = false;    // the answer has to be a JSON array
};

// The same request again and again.
std::unique_ptr<Load> make_requests(const RequestSettings& settings, size_t clients);

}  // namespace bench
