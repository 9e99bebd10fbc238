#include "upstreams.hpp"

#include <algorithm>
#include <utility>

#include "text.hpp"

std::optional<OllamaAddress> OllamaAddress::parse(std::string_view url) {
  OllamaAddress address;
  address.url = url;
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme)) return std::nullopt;
  url.remove_prefix(kScheme.size());
  const size_t slash = std::min(url.find('/'), url.size());
  std::string_view authority = url.substr(0, slash);
  std::string_view path = url.substr(slash);
  while (path.ends_with('/')) path.remove_suffix(1);
  // All of it but the scheme stands in each request's head, where a control byte would break it.
  const auto breaks = [](char c) { return static_cast<unsigned char>(c) <= ' ' || c == 0x7f; };
  if (url.find_first_of("?#@") != std::string_view::npos || std::any_of(url.begin(), url.end(), breaks)) return std::nullopt;

  address.host_header = authority;
  address.port = "80";
  const size_t bracket = authority.find(']');
  const size_t colon = authority.find(':', bracket == std::string_view::npos ? 0 : bracket);
  if (colon != std::string_view::npos) {
    address.port = authority.substr(colon + 1);
    authority = authority.substr(0, colon);
  }
  if (authority.starts_with('[') && authority.ends_with(']')) authority = authority.substr(1, authority.size() - 2);
  address.host = authority;
  if (address.host.empty() || address.port.empty() || address.port.find_first_not_of("0123456789") != std::string::npos ||
      address.port.size() > 5 || std::stoi(address.port) > 65535) {
    return std::nullopt;
  }
  address.api_path = path;
  if (!path.ends_with("/api")) address.api_path += "/api";
  return address;
}

Result<std::vector<OllamaAddress>, std::string> OllamaAddress::parse_list(std::string_view urls) {
  std::vector<OllamaAddress> addresses;
  for (size_t begin = 0; begin <= urls.size();) {
    const size_t end = std::min(urls.find(',', begin), urls.size());
    const auto address = parse(trim(urls.substr(begin, end - begin)));
    const bool alone = begin == 0 && end == urls.size();
    const std::string which = alone ? "the value" : "address " + std::to_string(addresses.size() + 1) + " of the list";
    if (!address) return which + " is not an http:// URL such as http://localhost:11434";
    addresses.push_back(*address);
    begin = end + 1;
  }
  if (addresses.size() > kOllamasMax) return "the list has more than " + std::to_string(kOllamasMax) + " addresses";
  return addresses;
}

std::optional<size_t> Upstreams::choose(const Tried& tried, bool resting_too, TimePoint now) {
  // Those that don't rest come first, then the rest that is over soonest; a rest that is over counts as none.
  const auto rank = [&](const State& state) {
    return std::pair(state.rests_until <= now ? TimePoint::min() : state.rests_until, state.running);
  };
  std::optional<size_t> best;
  for (size_t i = 0; i < states_.size(); ++i) {
    if (tried[i] || (!resting_too && states_[i].rests_until > now)) continue;
    if (!best || rank(states_[i]) < rank(states_[*best])) best = i;
  }
  if (!best) return best;
  State& chosen = states_[*best];
  ++chosen.running;
  // This turn finds out whether it is back; until that is known the others leave it alone.
  if (rests(*best) && chosen.rests_until <= now) {
    chosen.rest = std::min<Clock::duration>(2 * chosen.rest, kRestMax);
    chosen.rests_until = now + chosen.rest;
  }
  return best;
}

bool Upstreams::fail(size_t upstream, TimePoint now) {
  State& state = states_[upstream];
  if (rests(upstream)) return false;  // lengthened already by choose(), or many turns failed at once
  state.rest = kRestFirst;
  state.rests_until = now + state.rest;
  return true;
}

bool Upstreams::answer(size_t upstream) {
  State& state = states_[upstream];
  state.rests_until = {};
  return std::exchange(state.rest, {}) != Clock::duration::zero();
}
