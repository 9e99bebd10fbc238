// Ollama's answer as lines: splitting bytes into NDJSON lines, and what one line says. Pure; each
// object belongs to the one thread that reads the stream.
//
// Source: Ollama's API documentation, "Streaming responses" and "Errors".
#pragma once

#include <optional>
#include <string>
#include <string_view>

/// Cuts a stream of bytes into lines wherever the pieces begin and end. Line ends (\n, \r\n) are left
/// out; lines with nothing but white space are passed over.
class LineSplitter {
 public:
  /// A longer line is refused, so that a stream without line ends can't fill the memory.
  explicit LineSplitter(size_t line_bytes_max) : line_bytes_max_(line_bytes_max) {}

  /// Calls `on_line(std::string_view)` for each line that `bytes` completes; the view is valid during
  /// the call. False: a line went over the limit, and nothing more may be fed.
  template <class OnLine>
  [[nodiscard]] bool feed(std::string_view bytes, OnLine&& on_line) {
    for (size_t end = bytes.find('\n'); end != std::string_view::npos; end = bytes.find('\n')) {
      if (begun_.size() + end > line_bytes_max_) return refuse();
      if (begun_.empty()) {
        emit(bytes.substr(0, end), on_line);
      } else {
        begun_.append(bytes, 0, end);
        emit(begun_, on_line);
        begun_.clear();
      }
      bytes.remove_prefix(end + 1);
    }
    if (begun_.size() + bytes.size() > line_bytes_max_) return refuse();
    begun_.append(bytes);
    return true;
  }

  /// The stream is over: what came after the last line end is a line too.
  template <class OnLine>
  void finish(OnLine&& on_line) {
    emit(begun_, on_line);
    begun_.clear();
  }

 private:
  // Of a line that is too long nothing is left for finish(), however much of it had arrived before.
  bool refuse() {
    begun_.clear();
    return false;
  }
  template <class OnLine>
  static void emit(std::string_view line, OnLine&& on_line) {
    while (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) on_line(line);
  }

  size_t line_bytes_max_;
  std::string begun_;  // a line whose end has not arrived yet
};

/// What chatterd needs to know of one line.
struct OllamaLine {
  bool is_object = false;            ///< false: not a JSON object in valid UTF-8; the rest is unset
  bool done = false;                 ///< `"done":true`: the answer is complete
  std::string content;               ///< message.content, "" if it has none
  std::optional<std::string> error;  ///< the text of `error`, a value of another type as its JSON
};

OllamaLine parse_ollama_line(std::string_view line);
