#include "tests/fuzz/reference.hpp"

#include <algorithm>

namespace fuzz {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";

bool is_blank(std::string_view line) {
  return std::all_of(line.begin(), line.end(), [](char c) { return c == ' ' || c == '\t' || c == '\r'; });
}

// The bytes of the code point at the front of `text`, 0 if it is not well-formed: decodes it and looks
// whether this many bytes are what its value needs.
std::size_t code_point_bytes(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text.front());
  if (lead < 0x80) return 1;
  const std::size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC0 || lead >= 0xF8 || text.size() < bytes) return 0;
  std::uint32_t value = lead & (0x7FU >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >> 6 != 2) return 0;
    value = value << 6 | (byte & 0x3FU);
  }
  const bool surrogate = value >= 0xD800 && value <= 0xDFFF;
  const std::size_t needed = value < 0x80 ? 1 : value < 0x800 ? 2 : value < 0x10000 ? 3 : 4;
  return surrogate || value > 0x10FFFF || needed != bytes ? 0 : bytes;
}

}  // namespace

Lines split_lines(std::string_view text, std::size_t line_bytes_max) {
  Lines result;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    const bool ended = end < text.size();
    text.remove_prefix(ended ? end + 1 : end);
    if (line.size() > line_bytes_max) {
      result.too_long = true;
      return result;
    }
    if (is_blank(line)) continue;
    while (line.ends_with('\r')) line.remove_suffix(1);
    result.lines.emplace_back(line);
    result.last_is_ended = ended;
  }
  return result;
}

LineFacts read_line(std::string_view line) {
  // To nlohmann's parser a NUL byte is the end of its input.
  if (line.find('\0') != std::string_view::npos) return {};
  const auto document = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) return {};
  LineFacts facts;
  facts.is_object = true;
  if (const auto done = document.find("done"); done != document.end()) facts.done = *done == true;
  if (const auto error = document.find("error"); error != document.end() && !error->is_null()) facts.error = *error;
  const auto message = document.find("message");
  if (message == document.end() || !message->is_object()) return facts;
  if (const auto content = message->find("content"); content != message->end() && content->is_string()) facts.content = *content;
  return facts;
}

std::string repair_utf8(std::string_view text) {
  std::string repaired;
  while (!text.empty()) {
    const std::size_t bytes = code_point_bytes(text);
    if (bytes == 0) repaired += kReplacement;
    else repaired += text.substr(0, bytes);
    text.remove_prefix(std::max<std::size_t>(bytes, 1));
  }
  return repaired;
}

std::size_t code_points(std::string_view utf8) {
  std::size_t count = 0;
  for (; !utf8.empty(); ++count) utf8.remove_prefix(std::max<std::size_t>(code_point_bytes(utf8), 1));
  return count;
}

bool has_control_byte(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
}

}  // namespace fuzz
