#include "tests/bench/plan.hpp"

#include <algorithm>
#include <charconv>

namespace bench {
namespace {

constexpr long kTokensMax = 10'000'000;
constexpr long kPadBytesMax = 1'000'000;

std::optional<long> parse_count(std::string_view text, long max) {
  long value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > max) return std::nullopt;
  return value;
}

}  // namespace

std::optional<Clock::duration> parse_duration(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !(value >= 0 && value <= 86400)) return std::nullopt;
  const std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  double ns = 0;
  if (unit == "s") {
    ns = 1e9;
  } else if (unit == "ms") {
    ns = 1e6;
  } else if (unit == "us") {
    ns = 1e3;
  } else if (!unit.empty() || value != 0) {
    return std::nullopt;
  }
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::nano>(value * ns));
}

std::optional<Plan> parse_plan(std::string_view model) {
  Plan plan;
  while (!model.empty()) {
    const size_t end = std::min(model.find(';'), model.size());
    const std::string_view item = model.substr(0, end);
    model.remove_prefix(std::min(end + 1, model.size()));
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos) return std::nullopt;
    const std::string_view name = item.substr(0, equals);
    const std::string_view value = item.substr(equals + 1);
    if (name == "n" || name == "pad") {
      const auto count = parse_count(value, name == "n" ? kTokensMax : kPadBytesMax);
      if (!count) return std::nullopt;
      if (name == "n") plan.tokens = *count;
      else plan.pad_bytes = static_cast<size_t>(*count);
    } else if (name == "d" || name == "first") {
      const auto duration = parse_duration(value);
      if (!duration) return std::nullopt;
      (name == "d" ? plan.between : plan.first) = *duration;
    } else {
      return std::nullopt;
    }
  }
  return plan;
}

}  // namespace bench
