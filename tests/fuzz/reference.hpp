// The same work as the product's, done once more in the plainest way: what the targets compare with.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fuzz {

/// A stream cut into lines.
struct Lines {
  std::vector<std::string> lines;  ///< without line ends and blank lines
  bool too_long = false;           ///< a line was over the limit; nothing behind it counts
  bool last_is_ended = true;       ///< the last of `lines` had a line end
  friend bool operator==(const Lines&, const Lines&) = default;
};

Lines split_lines(std::string_view text, std::size_t line_bytes_max);

/// What one line of Ollama's says, by nlohmann's DOM. Agreed: of members of the same name the last one
/// counts; an `error` that is null is none; values of another type than expected are passed over.
struct LineFacts {
  bool is_object = false;
  bool done = false;
  std::string content;
  std::optional<nlohmann::json> error;
};

LineFacts read_line(std::string_view line);

/// `text` with each byte that is not part of well-formed UTF-8 replaced by U+FFFD.
std::string repair_utf8(std::string_view text);

/// The number of code points of valid UTF-8.
std::size_t code_points(std::string_view utf8);

bool has_control_byte(std::string_view text);

}  // namespace fuzz
