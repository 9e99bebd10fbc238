#include "tests/bench/loads.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <limits>

namespace bench {
namespace {

std::string request_text(const std::string& host, const std::string& path, const std::string& body) {
  std::string text = (body.empty() ? "GET " : "POST ") + path + " HTTP/1.1\r\nHost: " + host + "\r\n";
  if (!body.empty()) text += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  return text + "\r\n" + body;
}

// The number behind the first `name`; -1 without one.
long long number_behind(std::string_view line, std::string_view name) {
  const size_t at = line.find(name);
  long long value = -1;
  if (at != std::string_view::npos) std::from_chars(line.data() + at + name.size(), line.data() + line.size(), value);
  return value;
}

class Streams : public Load {
 public:
  Streams(StreamSettings settings, const Plan& plan, size_t clients)
      : settings_(std::move(settings)), plan_(plan), prompt_(settings_.prompt_bytes, 'x'), streams_(clients) {}

  std::string next_request(size_t client, long job) override {
    streams_[client] = Stream();
    streams_[client].began = Clock::now();
    const std::string number = settings_.one_conversation ? std::to_string(client) : std::to_string(job);
    return request_text(settings_.host, settings_.path,
                        "{\"appID\":\"" + settings_.app_id + number + "\",\"model\":\"" + settings_.model +
                            "\",\"messages\":[{\"role\":\"user\",\"content\":\"" + prompt_ + "\"}],\"stream\":true}");
  }

  void take(size_t client, std::string_view bytes, Clock::time_point read_at) override {
    Stream& stream = streams_[client];
    if (!stream.cut_off.empty()) {
      stream.cut_off += bytes;
      bytes = stream.cut_off;
    }
    size_t at = 0;
    for (size_t end = 0; (end = bytes.find('\n', at)) != std::string_view::npos; at = end + 1) {
      if (stream.problem.empty()) take_line(stream, bytes.substr(at, end - at), read_at);
    }
    std::string rest(bytes.substr(at));
    stream.cut_off = std::move(rest);
  }

  std::string finish(size_t client, double latency_s) override {
    Stream& stream = streams_[client];
    if (stream.problem.empty() && (!stream.done || !stream.cut_off.empty())) {
      stream.problem = "the stream ended after " + std::to_string(stream.tokens) + " of " + std::to_string(plan_.tokens) + " tokens, without its last line";
    }
    if (!stream.problem.empty()) return stream.problem;
    first_token_s_.push_back(stream.first_token_s);
    turn_s_.push_back(latency_s);
    prompt_messages_ = std::max(prompt_messages_, stream.prompt_messages);
    return "";
  }

  void report(Figures& figures, double wall_s) override {
    figures.add("streams_s", static_cast<double>(turn_s_.size()) / wall_s);
    figures.add("lines", static_cast<double>(relay_s_.size()));
    figures.add("lines_s", static_cast<double>(relay_s_.size()) / wall_s);
    figures.add_percentiles("ttft", "ms", 1e3, first_token_s_);
    figures.add_percentiles("turn", "ms", 1e3, turn_s_);
    figures.add_percentiles("relay", "us", 1e6, relay_s_);
    figures.add("prompt_messages", static_cast<double>(prompt_messages_));
  }

 private:
  struct Stream {
    Clock::time_point began;
    double first_token_s = 0;
    long tokens = 0;
    bool done = false;
    bool in_event = false;  // an "event:" line came, and its data did not yet
    long long prompt_messages = 0;
    std::string cut_off;  // a line whose end has not come yet
    std::string problem;
  };

  void take_line(Stream& stream, std::string_view line, Clock::time_point read_at) {
    constexpr std::string_view kData = "data: ";
    if (line.empty() || line.starts_with(':')) return;
    if (line.starts_with("event: ") && !stream.in_event) {
      stream.in_event = true;
    } else if (stream.in_event || !line.starts_with(kData)) {
      stream.problem = (stream.in_event ? "an error event: " : "an unexpected line: ") + std::string(line);
    } else {
      take_data(stream, line.substr(kData.size()), read_at);
    }
  }

  void take_data(Stream& stream, std::string_view data, Clock::time_point read_at) {
    const long long sent_ns = number_behind(data, "\"sent\":");
    if (sent_ns < 0) {
      stream.problem = "a line without its time: " + std::string(data);
      return;
    }
    relay_s_.push_back(static_cast<double>(ns_of(read_at) - sent_ns) / 1e9);
    if (stream.tokens == 0) stream.first_token_s = std::chrono::duration<double>(read_at - stream.began).count();
    const bool last = data.find("\"done\":true") != std::string_view::npos;
    if (stream.done || (last ? stream.tokens != plan_.tokens : number_behind(data, "\"content\":\" tok") != stream.tokens)) {
      stream.problem = "token " + std::to_string(stream.tokens) + " is missing, out of order or doubled";
    }
    if (last) {
      stream.done = true;
      stream.prompt_messages = number_behind(data, "\"prompt_eval_count\":");
    } else {
      ++stream.tokens;
    }
  }

  StreamSettings settings_;
  Plan plan_;
  std::string prompt_;
  std::vector<Stream> streams_;  // of each client
  std::vector<double> relay_s_, first_token_s_, turn_s_;
  long long prompt_messages_ = 0;  // the most that Ollama got with one request
};

class Requests : public Load {
 public:
  Requests(const RequestSettings& settings, size_t clients)
      : is_array_(settings.is_array), request_(request_text(settings.host, settings.path, settings.body)), bodies_(clients) {}

  std::string next_request(size_t client, long) override {
    bodies_[client] = Body();
    return request_;
  }
  void take(size_t client, std::string_view bytes, Clock::time_point) override {
    Body& body = bodies_[client];
    if (body.bytes == 0) body.first = bytes.front();
    // White space behind the array is allowed.
    if (const size_t at = bytes.find_last_not_of(" \r\n"); at != std::string_view::npos) body.last = bytes[at];
    body.bytes += bytes.size();
  }
  std::string finish(size_t client, double latency_s) override {
    const Body& body = bodies_[client];
    if (is_array_ && (body.bytes < 2 || body.first != '[' || body.last != ']')) return "the answer is no JSON array";
    latency_s_.push_back(latency_s);
    bytes_ += body.bytes;
    return "";
  }
  void report(Figures& figures, double wall_s) override {
    figures.add("requests_s", static_cast<double>(latency_s_.size()) / wall_s);
    figures.add_percentiles("latency", "ms", 1e3, latency_s_);
    figures.add("latency_max_ms", latency_s_.empty() ? std::numeric_limits<double>::quiet_NaN() : latency_s_.back() * 1e3);
    figures.add("bytes", static_cast<double>(bytes_));
    figures.add("mb_s", static_cast<double>(bytes_) / 1e6 / wall_s);
  }

 private:
  struct Body {
    std::uint64_t bytes = 0;
    char first = 0;
    char last = 0;
  };
  bool is_array_;
  std::string request_;
  std::vector<Body> bodies_;  // of each client
  std::vector<double> latency_s_;
  std::uint64_t bytes_ = 0;
};

}  // namespace

void Figures::add(std::string_view name, double value) {
  char number[32];
  std::snprintf(number, sizeof number, "%.12g", value);
  if (!text_.empty()) text_ += ' ';
  text_.append(name).append("=").append(number);
}

void Figures::add_percentiles(const std::string& prefix, const std::string& unit, double scale, std::vector<double>& times_s) {
  std::sort(times_s.begin(), times_s.end());
  for (const int percent : {50, 99}) {
    const size_t rank = times_s.empty() ? 0 : (times_s.size() - 1) * static_cast<size_t>(percent) / 100;
    const double value = times_s.empty() ? std::numeric_limits<double>::quiet_NaN() : times_s[rank] * scale;
    add(prefix + "_p" + std::to_string(percent) + "_" + unit, value);
  }
}

std::unique_ptr<Load> make_streams(const StreamSettings& settings, size_t clients) {
  const auto plan = parse_plan(settings.model);
  return plan ? std::make_unique<Streams>(settings, *plan, clients) : nullptr;
}

std::unique_ptr<Load> make_requests(const RequestSettings& settings, size_t clients) {
  return std::make_unique<Requests>(settings, clients);
}

}  // namespace bench
