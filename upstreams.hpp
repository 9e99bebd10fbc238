// The addresses of Ollama, and which of them gets a turn.
//
// Rules (docs/scaling.md): a turn goes to the address with the fewest running generations; among equals to
// the one named first, not round about, so that with few users its models and the conversations' prompt
// caches stay warm, and the fastest machine can be named first. An address that fails before its answer has
// begun rests: it is left alone for kRestFirst, and for twice as long after each further failure, up to
// kRestMax. After a rest one turn finds out for all whether it is back. A turn that has no better choice
// tries those that rest too, the one whose rest is over soonest first: an address alone is always tried.
#pragma once

#include <bitset>
#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "net.hpp"
#include "result.hpp"

/// Ollamas at most: a course has a handful, and each turn may ask all of them.
constexpr size_t kOllamasMax = 64;

/// Where an Ollama is, from a URL such as http://localhost:11434 or http://localhost:11434/api. A name of
/// several IP addresses is one Ollama: they are ways to it (localhost is ::1 and 127.0.0.1).
struct OllamaAddress {
  std::string url;  ///< as it was given
  std::string host;
  std::string port;
  std::string api_path;  ///< of the API: "/api", or with a proxy's prefix before it
  std::string host_header;

  /// Nothing: not an http:// URL.
  static std::optional<OllamaAddress> parse(std::string_view url);
  /// --ollama's value: URLs separated by commas, blanks around them allowed. Or a sentence that says what is
  /// wrong with it.
  static Result<std::vector<OllamaAddress>, std::string> parse_list(std::string_view urls);
};

/// What is known of each address: how many generations run there, and whether it rests. Pure: the time is
/// handed in. Not thread-safe; Ollama's lock guards it.
class Upstreams {
 public:
  using TimePoint = Clock::time_point;
  /// The first rest outlasts a restart of Ollama; after a long absence it is back in use within the last.
  static constexpr auto kRestFirst = std::chrono::seconds(1);
  static constexpr auto kRestMax = std::chrono::seconds(30);
  /// Those that a turn has tried already.
  using Tried = std::bitset<kOllamasMax>;

  explicit Upstreams(size_t count) : states_(count) {}

  /// The address for a turn, by the rules above; nothing: none is left that it has not tried. With
  /// `resting_too` false those that rest are not asked. The generation counts as running until leave().
  std::optional<size_t> choose(const Tried& tried, bool resting_too, TimePoint now);
  void leave(size_t upstream) { --states_[upstream].running; }
  /// There was no answer. True: with this its rest begins.
  bool fail(size_t upstream, TimePoint now);
  /// There was one, whatever its status. True: with this its rest is over.
  bool answer(size_t upstream);

  size_t running(size_t upstream) const { return states_[upstream].running; }
  /// It has failed and not answered since.
  bool rests(size_t upstream) const { return states_[upstream].rest != Clock::duration::zero(); }

 private:
  struct State {
    size_t running = 0;
    Clock::duration rest{};  // the length of the present one; zero: none
    TimePoint rests_until{};
  };
  std::vector<State> states_;
};
