#include "tests/harness/sse.hpp"

#include <stdexcept>

namespace harness {

void SseParser::feed(std::string_view bytes) {
  // CR never belongs into chatterd's streams, so only LF is taken as a line end and CR is reported.
  pending_.append(bytes);
  size_t start = 0;
  for (size_t end = 0; (end = pending_.find('\n', start)) != std::string::npos; start = end + 1) {
    take_line(std::string_view(pending_).substr(start, end - start));
  }
  pending_.erase(0, start);
}

void SseParser::take_line(std::string_view line) {
  if (line.find('\r') != std::string_view::npos) oddities_.push_back("a CR in: " + std::string(line));
  if (line.empty()) {
    if (event_.data_lines > 1) oddities_.push_back("an event of several data lines: " + event_.data);
    if (!has_data_ && !event_.type.empty()) oddities_.push_back("an event without data: " + event_.type);
    if (has_data_) {
      if (event_.type.empty()) event_.type = "message";
      events_.push_back(event_);
    }
    event_ = SseEvent();
    has_data_ = false;
    return;
  }
  if (line.front() == ':') {
    comments_.emplace_back(line.substr(1));
    return;
  }
  const size_t colon = line.find(':');
  const std::string_view field = line.substr(0, colon);
  if (colon == std::string_view::npos) oddities_.push_back("a line without a colon: " + std::string(line));
  std::string_view value = colon == std::string_view::npos ? std::string_view() : line.substr(colon + 1);
  if (!value.empty() && value.front() == ' ') value.remove_prefix(1);
  else oddities_.push_back("no space after the colon: " + std::string(line));
  if (field == "data") {
    if (has_data_) event_.data += '\n';
    event_.data += value;
    has_data_ = true;
    ++event_.data_lines;
  } else if (field == "event") {
    event_.type = std::string(value);
  } else {
    oddities_.push_back("an unexpected field: " + std::string(line));
  }
}

std::vector<std::string> SseParser::oddities() const {
  std::vector<std::string> all = oddities_;
  if (!pending_.empty()) all.push_back("an unfinished line: " + pending_);
  if (has_data_ || !event_.type.empty()) all.push_back("an unfinished event: " + event_.data);
  return all;
}

std::vector<SseEvent> parse_sse(std::string_view stream) {
  SseParser parser;
  parser.feed(stream);
  std::string complaint;
  for (const std::string& oddity : parser.oddities()) complaint += "; " + oddity;
  if (!complaint.empty()) throw std::runtime_error("not a strict event stream" + complaint);
  return parser.events();
}

}  // namespace harness
