// A parser of server-sent events by the WHATWG rules, and strict about what chatterd's clients can't bear.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace harness {

struct SseEvent {
  std::string type;  // "message" where the stream named none
  std::string data;
  int data_lines = 0;
  friend bool operator==(const SseEvent& a, const SseEvent& b) { return a.type == b.type && a.data == b.data; }
};

class SseParser {
 public:
  // Bytes as they come, cut anywhere.
  void feed(std::string_view bytes);
  [[nodiscard]] const std::vector<SseEvent>& events() const { return events_; }
  [[nodiscard]] const std::vector<std::string>& comments() const { return comments_; }
  // What a lenient parser would swallow: a CR, a line without a colon, no space after "data:", a field other
  // than data and event, an event of two data lines, bytes after the last empty line.
  [[nodiscard]] std::vector<std::string> oddities() const;

 private:
  void take_line(std::string_view line);
  std::string pending_;
  SseEvent event_;
  bool has_data_ = false;
  std::vector<SseEvent> events_;
  std::vector<std::string> comments_;
  std::vector<std::string> oddities_;
};

// All of a stream at once; throws std::runtime_error that names the oddities, if there are any.
std::vector<SseEvent> parse_sse(std::string_view stream);

}  // namespace harness
