// A value or the reason why there is none: how expected failures travel inside chatterd.
#pragma once

#include <string>
#include <utility>
#include <variant>

/// Holds a T or an E, never neither. Ask ok() before value() or error(): the wrong one is a bug and
/// throws std::bad_variant_access. T and E must be different types.
template <class T, class E>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::move(value)) {}  // NOLINT: implicit, so that `return value;` reads well
  Result(E error) : held_(std::move(error)) {}  // NOLINT

  bool ok() const { return held_.index() == 0; }
  T& value() { return std::get<0>(held_); }
  const T& value() const { return std::get<0>(held_); }
  const E& error() const { return std::get<1>(held_); }

 private:
  std::variant<T, E> held_;
};

/// Why chatterd can't start, as a sentence for the operator: a configuration that is wrong, or
/// something outside of it.
struct StartProblem {
  bool wrong_configuration;
  std::string sentence;
};
