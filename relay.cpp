#include "relay.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "metrics.hpp"
#include "sse.hpp"

namespace {

// One read: as much as a TLS record carries on to the client.
constexpr size_t kReceiveBytes = 16 * 1024;
// What is left at least of a full read when the chunks' framing is off.
constexpr size_t kFullBytes = kReceiveBytes / 2;
// An error answer is a sentence; of anything longer, such as a proxy's page, this much is enough.
constexpr size_t kErrorBytesMax = 64 * 1024;
// After its last line an answer's end is only waited for so that the connection can be used again.
constexpr auto kEndMax = std::chrono::seconds(1);
constexpr auto kErrorReadMax = std::chrono::seconds(5);

Ending ending_of(Generation::Event event) {
  switch (event) {
    case Generation::Event::end: return Ending::complete;
    case Generation::Event::client_left: return Ending::client_left;
    case Generation::Event::stopping: return Ending::stopping;
    case Generation::Event::timed_out: return Ending::silent;
    case Generation::Event::head:
    case Generation::Event::bytes:
    case Generation::Event::unreachable:
    case Generation::Event::broken: break;
  }
  return Ending::broken;
}

}  // namespace

std::string describe(Ending ending) {
  switch (ending) {
    case Ending::complete:
    case Ending::client_left: return "";
    case Ending::broken: return "Ollama ended the answer before it was complete.";
    case Ending::silent: return "Ollama has not answered for too long.";
    case Ending::too_long: return "The answer took longer than is allowed.";
    case Ending::too_large: return "The answer is larger than is allowed.";
    case Ending::stopping: return "The server is being stopped.";
  }
  return "";
}

bool SseFraming::take(std::string_view bytes, std::string& out) {
  return lines_.feed(bytes, [&](std::string_view line) { frame(line, out); });
}

void SseFraming::frame(std::string_view line, std::string& out) {
  ++line_count_;
  const OllamaLine parsed = parse_ollama_line(line);
  error_last_ = parsed.error.has_value();
  has_errors_ = has_errors_ || error_last_ || !parsed.is_object;
  if (!parsed.is_object) {
    append_sse_error(out, "Ollama sent a line that is not a JSON object.");
  } else if (parsed.error) {
    append_sse_error(out, *parsed.error);
  } else {
    append_sse_data(out, line);
    reply_.append(parsed.content);
    done_ = done_ || parsed.done;
  }
}

bool SseFraming::close(const std::string& problem, std::string& out) {
  lines_.finish([&](std::string_view line) {
    // Of a line that was cut off nothing can be made; that the answer broke off is said below.
    if (problem.empty() || parse_ollama_line(line).is_object) frame(line, out);
  });
  if (done_ || (problem.empty() && error_last_)) return true;
  append_sse_error(out, problem.empty() ? describe(Ending::broken) : problem);
  return true;
}

std::string_view SseFraming::ping() const { return kSsePing; }

bool RawFraming::take(std::string_view bytes, std::string& out) {
  line_count_ += std::count(bytes.begin(), bytes.end(), '\n');
  out += bytes;
  at_line_start_ = bytes.ends_with('\n');
  return true;
}

bool RawFraming::close(const std::string& problem, std::string& out) {
  if (problem.empty()) return true;
  if (!ndjson_ || !at_line_start_) return false;
  out += "{\"error\":";
  append_json_string(out, problem);
  out += "}\n";
  return true;
}

Ending Relay::run(Generation& generation, Framing& framing, std::string& problem) {
  const Deadline whole = Deadline::after(config_.reply_seconds);
  heard_at_ = Clock::now();
  received_bytes_ = 0;
  std::optional<Ending> ending;
  // The answer's last line changes for how long there is something to wait for.
  const auto step = [&] {
    std::array<char, kReceiveBytes> buffer;
    generation.receive(buffer);
    const long lines_before = framing.lines();
    const size_t received_before = received_bytes_;
    ending = pass_on(generation, framing, whole);
    if (ending || framing.done()) return Step::last;
    if (received_bytes_ - received_before >= kFullBytes) return Step::full;
    return framing.lines() - lines_before > 1 ? Step::many : Step::one;
  };
  if (generation.has_head()) ending = pass_on(generation, framing, whole);
  while (!ending) {
    const Deadline silence = Deadline::at_time(heard_at_ + (framing.done() ? kEndMax : Clock::duration(config_.ollama_timeout)));
    const Deadline wait_until = Deadline::earlier(Deadline::earlier(whole, silence), next_ping(framing));
    const auto event = generation.has_head() ? event_of(waiter_.carry(generation.fd(), wait_until, step))
                                             : generation.read_head(waiter_, wait_until);
    if (event == Generation::Event::timed_out) {
      if (framing.done() && silence.passed()) return Ending::complete;
      if (whole.passed()) return Ending::too_long;
      if (Clock::now() >= heard_at_ + config_.ollama_timeout) return Ending::silent;
      if (!ping_if_due(framing)) return Ending::client_left;
    } else if (event == Generation::Event::head) {
      heard_at_ = Clock::now();
      if (generation.status() >= 400) {
        problem = error_text(generation.status(), read_error(generation, waiter_));
        return Ending::broken;
      }
      ending = pass_on(generation, framing, whole);
    } else if (event != Generation::Event::bytes) {
      return ending_of(event);
    }
  }
  return *ending;
}

// Sends on what has been received. Nothing: the answer goes on.
std::optional<Ending> Relay::pass_on(Generation& generation, Framing& framing, Deadline whole) {
  // What arrived together goes out together: one chunk, one TLS record, one system call.
  out_.clear();
  bool fits = true;
  std::string_view bytes;
  const size_t received_before = received_bytes_;
  const long lines_before = framing.lines();
  while (fits && generation.read_at_hand(bytes)) {
    received_bytes_ += bytes.size();
    fits = framing.take(bytes, out_) && received_bytes_ <= config_.max_reply;
  }
  if (received_bytes_ != received_before) heard_at_ = Clock::now();
  if (!out_.empty()) {
    if (!send(out_)) return Ending::client_left;
    metrics::relayed_lines.add(static_cast<std::uint64_t>(framing.lines() - lines_before));
    metrics::relayed_bytes.add(out_.size());
  }
  if (!fits) return Ending::too_large;
  if (const auto end = generation.ended()) return ending_of(*end);
  // A stream that never pauses must not outlive its limit either.
  if (heard_at_ >= whole.at()) return Ending::too_long;
  return std::nullopt;
}

Wake Relay::idle(milliseconds pause, const Framing& framing) {
  const Wake wake = waiter_.wait(-1, 0, Deadline::after(pause));
  if (wake == Wake::timed_out && !ping_if_due(framing)) return Wake::client_left;
  return wake;
}

bool Relay::send(std::string_view bytes) {
  if (on_first_bytes_) std::exchange(on_first_bytes_, nullptr)();
  if (!send_(bytes)) return false;
  last_sent_ = Clock::now();
  return true;
}

Deadline Relay::next_ping(const Framing& framing) const {
  const bool none = framing.ping().empty() || config_.ping_interval.count() == 0;
  return none ? Deadline::never() : Deadline::at_time(last_sent_ + config_.ping_interval);
}

bool Relay::ping_if_due(const Framing& framing) {
  if (!next_ping(framing).passed()) return true;
  last_sent_ = Clock::now();
  return send_(framing.ping());
}

std::string error_text(int status, std::string_view body) {
  const OllamaLine parsed = parse_ollama_line(body);
  if (parsed.error && !parsed.error->empty()) return *parsed.error;
  return "Ollama answered with status " + std::to_string(status) + ".";
}

std::string read_error(Generation& generation, Waiter& waiter) {
  return generation.read_small(waiter, Deadline::after(kErrorReadMax), kErrorBytesMax);
}
