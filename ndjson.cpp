#include "ndjson.hpp"

#include <nlohmann/json.hpp>

#include "json_view.hpp"

namespace {

using nlohmann::json;

// Picks the three values out of nlohmann's events; the parser checks syntax and UTF-8 on the way, and
// does not recurse, however deep the line is nested.
struct Picker {
  OllamaLine line;
  bool has_error = false;  // of a type other than string
  int depth = 0;
  std::string outer_key;  // the member of the line's object that the events are in
  std::string inner_key;  // likewise of message

  bool at_outer(std::string_view key) const { return depth == 1 && outer_key == key; }

  // Of members of the same name the last one counts, whatever its type.
  void forget() {
    if (outer_key == "done") line.done = false;
    if (outer_key == "message") line.content.clear();
    if (outer_key == "error") {
      line.error.reset();
      has_error = false;
    }
  }
  bool other_value() {
    if (at_outer("error")) has_error = true;
    return true;
  }
  bool null() { return true; }
  bool boolean(bool value) {
    if (at_outer("done")) line.done = value;
    return other_value();
  }
  bool number_integer(json::number_integer_t) { return other_value(); }
  bool number_unsigned(json::number_unsigned_t) { return other_value(); }
  bool number_float(json::number_float_t, const std::string&) { return other_value(); }
  bool binary(json::binary_t&) { return true; }
  bool string(std::string& text) {
    if (at_outer("error")) line.error = std::move(text);
    else if (depth == 2 && outer_key == "message" && inner_key == "content") line.content = std::move(text);
    return true;
  }
  bool key(std::string& text) {
    if (depth == 1) {
      outer_key = std::move(text);
      inner_key.clear();
      forget();
    } else if (depth == 2) {
      inner_key = std::move(text);
      if (outer_key == "message" && inner_key == "content") line.content.clear();
    }
    return true;
  }
  bool start_object(std::size_t) {
    if (depth == 0) line.is_object = true;
    other_value();
    ++depth;
    return true;
  }
  bool end_object() {
    --depth;
    return true;
  }
  bool start_array(std::size_t) {
    other_value();
    if (depth == 1) inner_key.clear();
    ++depth;
    return true;
  }
  bool end_array() {
    --depth;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const json::exception&) { return false; }
};

}  // namespace

OllamaLine parse_ollama_line(std::string_view line) {
  Picker picker;
  // The parser takes a NUL byte for the end of its input.
  const bool valid = line.find('\0') == std::string_view::npos && json::sax_parse(line.begin(), line.end(), &picker);
  if (!valid || !picker.line.is_object) return {};
  if (picker.has_error && !picker.line.error) {
    const auto members = json_members(line);
    if (const JsonMember* member = find_member(members, "error")) picker.line.error = std::string(member->value);
  }
  return std::move(picker.line);
}
