// What the stand-in is told by a model's name and the loader expects of it. Pure; any thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <string_view>

namespace bench {

using Clock = std::chrono::steady_clock;  // CLOCK_MONOTONIC: the same in every process of this machine

// Nanoseconds of the machine's clock, as lines carry them in "sent".
inline long long ns_of(Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

// "20ms", "1.5s", "300us" or "0".
std::optional<Clock::duration> parse_duration(std::string_view text);

// One answer. As a model's name "n=100;d=20ms;first=1s;pad=50"; what is left out is as here.
struct Plan {
  long tokens = 50;          // n
  Clock::duration between{};  // d: from one token to the next; 0: as fast as the socket takes them
  Clock::duration first{};    // first: from the request to the first token
  size_t pad_bytes = 0;       // pad: added to each token
};

// Nothing: not such a name.
std::optional<Plan> parse_plan(std::string_view model);

}  // namespace bench
