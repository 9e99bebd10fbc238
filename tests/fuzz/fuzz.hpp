// What the fuzz targets share. A target drives one module with arbitrary bytes and checks properties of
// what comes out. libFuzzer calls it millions of times (scripts/fuzz.sh); the unit tests call it with
// every file of its corpus (tests/unit_fuzz_corpus.cpp).
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fuzz {

using Bytes = std::span<const std::uint8_t>;

/// A property does not hold. Nobody catches it under libFuzzer, which then keeps the input.
struct Violation : std::logic_error {
  using std::logic_error::logic_error;
};

inline void expect(bool holds, const char* property) {
  if (!holds) throw Violation(property);
}

/// Takes choices off the front of an input. Of one that is used up, every choice is 0.
class Input {
 public:
  explicit Input(Bytes bytes) : text_(reinterpret_cast<const char*>(bytes.data()), bytes.size()) {}
  unsigned byte() {
    if (text_.empty()) return 0;
    const auto first = static_cast<unsigned char>(text_.front());
    text_.remove_prefix(1);
    return first;
  }
  std::string_view rest() const { return text_; }

 private:
  std::string_view text_;
};

/// How a text is cut into pieces. In an input: a digit, the number of lengths (0: the text is one piece),
/// then that many letters, each a length (@ is 0, a is 1, ... z is 26), which are used in turn.
class Cuts {
 public:
  Cuts() = default;
  explicit Cuts(Input& input) {
    for (unsigned count = input.byte() & 7; count > 0; --count) lengths_.push_back(input.byte() & 31);
  }

  /// Calls `on_piece(std::string_view)` until the text is used up or one call returns false.
  template <class OnPiece>
  void for_each(std::string_view text, OnPiece&& on_piece) const {
    std::size_t total = 0;
    for (const std::size_t length : lengths_) total += length;
    if (total == 0) {
      on_piece(text);
      return;
    }
    for (std::size_t i = 0; !text.empty(); i = (i + 1) % lengths_.size()) {
      const std::string_view piece = text.substr(0, lengths_[i]);
      text.remove_prefix(piece.size());
      if (!on_piece(piece)) return;
    }
  }

 private:
  std::vector<std::size_t> lengths_;
};

void request(Bytes body);
void ndjson(Bytes input);
void sse(Bytes input);
void options(Bytes input);
void http1(Bytes input);

}  // namespace fuzz

// libFuzzer's entry. Without it, as in the unit tests, a target is a function like any other.
#ifdef FUZZ_ENTRY
#define FUZZ_TARGET(name)                                                               \
  extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { \
    fuzz::name({data, size});                                                           \
    return 0;                                                                           \
  }
#else
#define FUZZ_TARGET(name)
#endif
