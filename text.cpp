#include "text.hpp"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

void append_json_escape(std::string& out, unsigned char byte) {
  switch (byte) {
    case '"': out += "\\\""; return;
    case '\\': out += "\\\\"; return;
    case '\b': out += "\\b"; return;
    case '\f': out += "\\f"; return;
    case '\n': out += "\\n"; return;
    case '\r': out += "\\r"; return;
    case '\t': out += "\\t"; return;
    default: {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", byte);
      out += escaped;
    }
  }
}

bool needs_care(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte < 0x20 || byte >= 0x80 || c == '"' || c == '\\';
}

// Whether none of eight bytes needs care, by arithmetic on all of them at once: the high bit of a byte is
// set where it, the byte less 0x20, or the byte's difference from a quote or backslash less 1 is negative. A
// borrow from the byte below can only say too often that there is one.
bool eight_are_plain(const char* text) {
  constexpr std::uint64_t kOnes = 0x0101010101010101;
  std::uint64_t bytes = 0;
  std::memcpy(&bytes, text, sizeof bytes);
  const std::uint64_t negative = bytes | (bytes - kOnes * 0x20) | ((bytes ^ kOnes * '"') - kOnes) | ((bytes ^ kOnes * '\\') - kOnes);
  return (negative & (kOnes * 0x80)) == 0;
}

// How much at the front is neither white space as the contract has it (3.11) nor U+0000.
size_t word_length(std::string_view text) {
  const auto ends_word = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r') || c == '\0'; };
  return static_cast<size_t>(std::find_if(text.begin(), text.end(), ends_word) - text.begin());
}

// In decimal, with zeros before it up to `digits`.
void append_number(std::string& out, std::int64_t number, size_t digits) {
  if (number < 0) out += '-';
  std::uint64_t left = number < 0 ? 0 - static_cast<std::uint64_t>(number) : static_cast<std::uint64_t>(number);
  std::array<char, 20> text;
  size_t at = text.size();
  for (; left != 0 || text.size() - at < digits; left /= 10) text[--at] = static_cast<char>('0' + left % 10);
  out.append(text.data() + at, text.size() - at);
}

}  // namespace

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool is_one_of(std::string_view value, std::string_view values) {
  while (!values.empty()) {
    const size_t end = std::min(values.find(", "), values.size());
    if (values.substr(0, end) == value) return true;
    values.remove_prefix(std::min(end + 2, values.size()));
  }
  return false;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

size_t utf8_sequence_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const size_t left = text.size() - at;
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  size_t length = 0;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;   // overlong
    if (lead == 0xED) high = 0x9F;  // surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;   // overlong
    if (lead == 0xF4) high = 0x8F;  // beyond U+10FFFF
  }
  if (length == 0 || left < length || byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (!is_continuation(text[at + i])) return 0;
  }
  return length;
}

size_t plain_length(std::string_view text) {
  size_t i = 0;
  while (text.size() - i >= 8 && eight_are_plain(text.data() + i)) i += 8;
  while (i < text.size() && !needs_care(text[i])) ++i;
  return i;
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  size_t plain_from = 0;
  size_t i = 0;
  const auto flush_plain = [&] { out.append(text, plain_from, i - plain_from); };
  while (true) {
    i += plain_length(text.substr(i));
    if (i == text.size()) break;
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >= 0x80) {
      if (const size_t length = utf8_sequence_length(text, i)) {
        i += length;
        continue;
      }
      flush_plain();
      out += kReplacement;
    } else {
      flush_plain();
      append_json_escape(out, byte);
    }
    plain_from = ++i;
  }
  flush_plain();
  out += '"';
}

size_t count_code_points(std::string_view utf8) {
  size_t count = 0;
  for (const char c : utf8) count += is_continuation(c) ? 0 : 1;
  return count;
}

std::string format_uuid(std::string_view bytes) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::array<char, 36> text;
  size_t at = 0;
  for (size_t i = 0; i < bytes.size() && i < 16; ++i) {
    const auto byte = static_cast<unsigned char>(bytes[i]);
    if (i == 4 || i == 6 || i == 8 || i == 10) text[at++] = '-';
    text[at++] = kHex[byte >> 4];
    text[at++] = kHex[byte & 15];
  }
  return {text.data(), at};
}

std::string make_uuid() {
  std::array<char, 16> bytes{};
  // 16 bytes never come in part once the generator is up; before that, or on a signal, ask again.
  while (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
  }
  bytes[6] = static_cast<char>((bytes[6] & 0x0F) | 0x40);
  bytes[8] = static_cast<char>((bytes[8] & 0x3F) | 0x80);
  return format_uuid({bytes.data(), bytes.size()});
}

std::string format_timestamp(std::int64_t us_since_2000) {
  if (us_since_2000 == kNoTime) return "-infinity";
  if (us_since_2000 == std::numeric_limits<std::int64_t>::max()) return "infinity";
  using namespace std::chrono;
  const auto time = sys_days(year(2000) / January / 1) + microseconds(us_since_2000);
  const auto day = floor<days>(time);
  const year_month_day date(day);
  const hh_mm_ss clock(time - day);
  // printf would be a fifth of the time of /getchatts/.
  std::string text;
  text.reserve(27);
  append_number(text, static_cast<int>(date.year()), 4);
  append_number(text += '-', static_cast<unsigned>(date.month()), 2);
  append_number(text += '-', static_cast<unsigned>(date.day()), 2);
  append_number(text += 'T', clock.hours().count(), 2);
  append_number(text += ':', clock.minutes().count(), 2);
  append_number(text += ':', clock.seconds().count(), 2);
  append_number(text += '.', clock.subseconds().count(), 6);
  return text += 'Z';
}

void ReplyText::append(std::string_view piece) {
  while (!piece.empty()) {
    const size_t word = word_length(piece);
    text_ += piece.substr(0, word);
    if (word > 0) in_whitespace_ = false;
    piece.remove_prefix(word);
    if (piece.empty()) return;
    const char c = piece.front();
    piece.remove_prefix(1);
    if (c == '\0') {
      text_ += kReplacement;
      in_whitespace_ = false;
    } else {
      if (keep_whitespace_ || !in_whitespace_) text_ += keep_whitespace_ ? c : ' ';
      in_whitespace_ = true;
    }
  }
}
