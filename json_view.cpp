#include "json_view.hpp"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "text.hpp"

namespace {

using nlohmann::json;

// nlohmann's event interface: validates without building anything.
struct Checker {
  int depth = 0;
  std::string problem;

  bool enter() {
    if (++depth <= kJsonDepthMax) return true;
    problem = "is nested deeper than " + std::to_string(kJsonDepthMax) + " levels";
    return false;
  }
  bool leave() {
    --depth;
    return true;
  }
  bool check(const std::string& text) {
    if (text.find('\0') == std::string::npos) return true;
    problem = "contains the character U+0000, which can't be stored";
    return false;
  }

  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(json::number_integer_t) { return true; }
  bool number_unsigned(json::number_unsigned_t) { return true; }
  bool number_float(json::number_float_t, const std::string&) { return true; }
  bool string(std::string& text) { return check(text); }
  bool binary(json::binary_t&) { return true; }
  bool start_object(std::size_t) { return enter(); }
  bool key(std::string& text) { return check(text); }
  bool end_object() { return leave(); }
  bool start_array(std::size_t) { return enter(); }
  bool end_array() { return leave(); }
  bool parse_error(std::size_t position, const std::string&, const json::exception&) {
    // The exception's text quotes the client's bytes: the position says enough.
    problem = "is not valid JSON in UTF-8 near byte " + std::to_string(position);
    return false;
  }
};

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

size_t skip_space(std::string_view text, size_t at) {
  while (at < text.size() && is_space(text[at])) ++at;
  return at;
}

size_t end_of_string(std::string_view text, size_t at) {
  ++at;
  while (true) {
    at += plain_length(text.substr(at));
    if (at >= text.size()) return text.size();
    if (text[at] == '"') return at + 1;
    at = std::min(text.size(), at + (text[at] == '\\' ? 2 : 1));
  }
}

size_t end_of_value(std::string_view text, size_t at) {
  if (at >= text.size()) return text.size();
  if (text[at] == '"') return end_of_string(text, at);
  if (text[at] != '{' && text[at] != '[') {
    while (at < text.size() && !is_space(text[at]) && text[at] != ',' && text[at] != '}' && text[at] != ']') ++at;
    return at;
  }
  int depth = 0;
  while (at < text.size()) {
    const char c = text[at];
    if (c == '"') {
      at = end_of_string(text, at);
      continue;
    }
    ++at;
    if (c == '{' || c == '[') ++depth;
    if ((c == '}' || c == ']') && --depth == 0) break;
  }
  return at;
}

// The position of the next member or element of a container, npos after the last.
size_t next_item(std::string_view text, size_t at) {
  at = skip_space(text, at);
  if (at < text.size() && text[at] == ',') at = skip_space(text, at + 1);
  if (at >= text.size() || text[at] == '}' || text[at] == ']') return std::string_view::npos;
  return at;
}

}  // namespace

std::optional<std::string> find_json_problem(std::string_view text) {
  // The parser takes a NUL byte for the end of its input.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return "is not valid JSON in UTF-8 near byte " + std::to_string(nul + 1);
  }
  Checker checker;
  if (json::sax_parse(text.begin(), text.end(), &checker)) return std::nullopt;
  return checker.problem;
}

std::string_view trim_json(std::string_view text) {
  if (text.substr(0, 3) == "\xEF\xBB\xBF") text.remove_prefix(3);
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

bool is_json_object(std::string_view text) { return trim_json(text).substr(0, 1) == "{"; }

JsonMembers::JsonMembers(std::string_view object) : text_(trim_json(object)), at_(1) {}

bool JsonMembers::next() {
  at_ = next_item(text_, at_);
  if (at_ == std::string_view::npos) return false;
  const size_t key_end = end_of_string(text_, at_);
  const size_t value_at = skip_space(text_, skip_space(text_, key_end) + 1);  // behind the colon
  const size_t value_end = end_of_value(text_, value_at);
  if (value_end <= value_at) return false;  // not JSON
  key_ = text_.substr(at_, key_end - at_);
  value_ = text_.substr(value_at, value_end - value_at);
  at_ = value_end;
  return true;
}

bool JsonMembers::is(std::string_view name) const {
  if (key_.find('\\') != std::string_view::npos) return key() == name;
  return key_.size() == name.size() + 2 && key_.substr(1, name.size()) == name;
}

std::string JsonMembers::key() const { return json_string(key_).value_or(""); }

std::vector<JsonMember> json_members(std::string_view object) {
  std::vector<JsonMember> members;
  for (JsonMembers member(object); member.next();) members.push_back({member.key(), member.value()});
  return members;
}

std::vector<std::string_view> json_elements(std::string_view array) {
  const std::string_view text = trim_json(array);
  std::vector<std::string_view> elements;
  for (size_t at = next_item(text, 1); at != std::string_view::npos; at = next_item(text, at)) {
    const size_t end = end_of_value(text, at);
    if (end <= at) break;  // not JSON
    elements.push_back(text.substr(at, end - at));
    at = end;
  }
  return elements;
}

std::optional<std::string> json_string(std::string_view value) {
  if (value.size() < 2 || value.front() != '"' || value.back() != '"') return std::nullopt;
  const std::string_view inner = value.substr(1, value.size() - 2);
  if (inner.find('\\') == std::string_view::npos) return std::string(inner);
  const json parsed = json::parse(value.begin(), value.end(), nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_string()) return std::nullopt;
  return parsed.get<std::string>();
}

const JsonMember* find_member(const std::vector<JsonMember>& members, std::string_view key) {
  for (auto member = members.rbegin(); member != members.rend(); ++member) {
    if (member->key == key) return &*member;
  }
  return nullptr;
}
