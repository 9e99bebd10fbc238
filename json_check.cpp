#include "json_check.hpp"

#include <cmath>
#include <cstdlib>
#include <string>

#include "json_view.hpp"
#include "text.hpp"

namespace {

// No shorter number without an exponent is outside of a double's range.
constexpr size_t kSafeDigits = 300;

// Reads a text from its front to its end.
class JsonReader {
 public:
  JsonReader(std::string_view text, size_t depth_max) : text_(text), depth_max_(depth_max) {}

  bool read_document() {
    while (true) {
      pass_space();
      const char c = peek();
      if (c == '{' || c == '[') {
        ++at_;
        open_ += c;
        if (open_.size() > depth_max_) return false;
        pass_space();
        if (peek() != end_of(c)) {
          if (c == '{' && !read_key()) return false;
          continue;
        }
      } else if (!read_scalar(c)) {
        return false;
      }
      switch (pass_ends()) {
        case After::value: break;
        case After::nothing: return true;
        case After::error: return false;
      }
    }
  }

 private:
  enum class After { value, nothing, error };

  static char end_of(char container) { return container == '{' ? '}' : ']'; }

  // Behind a value or the begin of an empty container: the ends of containers, and up to the next value.
  After pass_ends() {
    while (true) {
      pass_space();
      if (open_.empty()) return at_ == text_.size() ? After::nothing : After::error;
      const char container = open_.back();
      if (take(end_of(container))) {
        open_.pop_back();
      } else if (take(',')) {
        pass_space();
        return container == '[' || read_key() ? After::value : After::error;
      } else {
        return After::error;
      }
    }
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }  // a NUL is nowhere right
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void pass_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) ++at_;
  }

  bool read_key() {
    if (!read_string()) return false;
    pass_space();
    return take(':');
  }

  bool read_scalar(char c) {
    switch (c) {
      case '"': return read_string();
      case 't': return read_word("true");
      case 'f': return read_word("false");
      case 'n': return read_word("null");
      default: return read_number();
    }
  }

  bool read_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  bool read_digits() {
    const size_t from = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > from;
  }

  bool read_number() {
    const size_t from = at_;
    take('-');
    if (!take('0') && !read_digits()) return false;
    if (take('.') && !read_digits()) return false;
    const bool has_exponent = take('e') || take('E');
    if (has_exponent) {
      if (!take('+')) take('-');
      if (!read_digits()) return false;
    }
    if (!has_exponent && at_ - from < kSafeDigits) return true;
    return std::isfinite(std::strtod(std::string(text_.substr(from, at_ - from)).c_str(), nullptr));
  }

  bool read_string() {
    if (!take('"')) return false;
    while (true) {
      at_ += plain_length(text_.substr(at_));
      const char c = peek();
      if (c == '"') {
        ++at_;
        return true;
      }
      if (c == '\\') {
        if (!read_escape()) return false;
      } else if (static_cast<unsigned char>(c) < 0x80) {
        return false;  // a control character, or the end
      } else {
        const size_t length = utf8_sequence_length(text_, at_);
        if (length == 0) return false;
        at_ += length;
      }
    }
  }

  bool read_escape() {
    ++at_;
    const char c = peek();
    if (c != 'u') {
      ++at_;
      return std::string_view("\"\\/bfnrt").find(c) != std::string_view::npos;
    }
    const int unit = read_code_unit();
    if (unit >= 0xDC00 && unit <= 0xDFFF) return false;
    if (unit < 0xD800 || unit > 0xDBFF) return unit >= 0;
    if (!take('\\') || peek() != 'u') return false;
    const int low = read_code_unit();
    return low >= 0xDC00 && low <= 0xDFFF;
  }

  // The number behind a 'u'; -1 if there is none.
  int read_code_unit() {
    ++at_;
    int unit = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const char lower = static_cast<char>(c | 0x20);
      if (c >= '0' && c <= '9') unit = unit * 16 + (c - '0');
      else if (lower >= 'a' && lower <= 'f') unit = unit * 16 + (lower - 'a' + 10);
      else return -1;
    }
    return unit;
  }

  const std::string_view text_;
  const size_t depth_max_;
  size_t at_ = 0;
  std::string open_;  // the containers around, the innermost last: { or [
};

}  // namespace

bool is_json(std::string_view text, size_t depth_max) { return JsonReader(trim_json(text), depth_max).read_document(); }
