// Text as it crosses chatterd's borders: JSON strings, white space, UTF-8, identifiers. Pure functions
// and small values; any thread.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

/// Appends `text` as a JSON string with its quotes (RFC 8259, section 7). Invalid UTF-8 becomes
/// U+FFFD, so that the result is always valid JSON.
void append_json_string(std::string& out, std::string_view text);

/// How many bytes at the front of `text` are ASCII that a JSON string holds as it is: no control character, quote or
/// backslash. Fast, but for the last seven.
size_t plain_length(std::string_view text);

/// The text without the spaces and tabs around it.
std::string_view trim(std::string_view text);

/// Whether `value` is one of those in a list with ", " between them.
bool is_one_of(std::string_view value, std::string_view values);

/// The value of a hexadecimal digit; -1: it is none.
int hex_value(char c);

/// The length of the well-formed UTF-8 sequence at `at` (Unicode 15, table 3-7), 0 if there is none.
size_t utf8_sequence_length(std::string_view text, size_t at);

/// The number of code points in valid UTF-8: what PostgreSQL's varchar(n) counts.
size_t count_code_points(std::string_view utf8);

/// The 36-character form of a UUID's 16 bytes (RFC 9562); of none, nothing.
std::string format_uuid(std::string_view bytes);

/// A random (version 4) UUID in its 36-character form, from the kernel's generator.
std::string make_uuid();

/// No time at all, which comes before every other: what PostgreSQL calls -infinity.
constexpr std::int64_t kNoTime = std::numeric_limits<std::int64_t>::min();

/// A time in microseconds since 2000-01-01 UTC, as PostgreSQL counts it, by RFC 3339 in UTC with
/// microseconds: 2026-01-31T09:30:00.000001Z. kNoTime is "-infinity", the largest value "infinity".
std::string format_timestamp(std::int64_t us_since_2000);

/// Collects a reply from its pieces for storage (contract 3.11): every run of white space (space, \t,
/// \n, \v, \f, \r) becomes one space, also where a run goes over several pieces; or, when told to keep
/// it, everything as it came. U+0000, which PostgreSQL can't store, becomes U+FFFD.
class ReplyText {
 public:
  explicit ReplyText(bool keep_whitespace) : keep_whitespace_(keep_whitespace) {}
  void append(std::string_view piece);
  const std::string& text() const { return text_; }

 private:
  bool keep_whitespace_;
  bool in_whitespace_ = false;
  std::string text_;
};
