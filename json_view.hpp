// Reads JSON without rebuilding it: a document is checked once, then taken apart into views of its own
// bytes, so that what a client sent can be passed on exactly as it was written (1.0 stays 1.0).
// Pure functions; any thread. Views live as long as the text they point into.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Deeper nesting than this is refused: nobody writes it by hand, and code that walks it may recurse.
constexpr int kJsonDepthMax = 64;

/// Says what is wrong with `text` as a client's JSON document in UTF-8, as the end of a sentence
/// ("is not valid JSON near byte 12"), or nothing when it is right. Refused beside bad syntax: invalid
/// UTF-8, lone surrogates, numbers outside a double's range, U+0000 in a string or key (PostgreSQL
/// can't store it), nesting deeper than kJsonDepthMax.
std::optional<std::string> find_json_problem(std::string_view text);

/// One member of an object: the decoded key, and the value as it was written.
struct JsonMember {
  std::string key;
  std::string_view value;
};

/// The functions below take JSON that was found valid; on anything else the result is unspecified
/// but stays inside `text`.
std::string_view trim_json(std::string_view text);  ///< without white space and BOM around it
bool is_json_object(std::string_view text);
std::vector<JsonMember> json_members(std::string_view object);
/// The members of an object one by one, as they were written.
class JsonMembers {
 public:
  explicit JsonMembers(std::string_view object);
  /// Goes on to the first or next one. False: there is none.
  bool next();
  std::string_view value() const { return value_; }
  /// Whether its key is `name`, which has nothing to escape.
  bool is(std::string_view name) const;
  std::string key() const;

 private:
  std::string_view text_;
  size_t at_;
  std::string_view key_;  // with its quotes
  std::string_view value_;
};
std::vector<std::string_view> json_elements(std::string_view array);
/// The text of a JSON string; nothing if the value is of another type.
std::optional<std::string> json_string(std::string_view value);
/// The last member of that name, as common parsers choose among duplicates; nullptr if there is none.
const JsonMember* find_member(const std::vector<JsonMember>& members, std::string_view key);
const JsonMember* find_member(std::vector<JsonMember>&& members, std::string_view key) = delete;  // it would dangle
