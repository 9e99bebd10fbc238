#include "access.hpp"

#include <arpa/inet.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>

#include "http1.hpp"
#include "text.hpp"

namespace {

constexpr double kBurstSeconds = 2;
// Beyond this many clients those with full buckets, which are as good as unknown, are forgotten.
constexpr size_t kBucketsMax = 10'000;

template <class Digest>
bool parse_digest(std::string_view hex, Digest& digest) {
  if (hex.size() < 2 * digest.size()) return false;
  for (size_t i = 0; i < digest.size(); ++i) {
    const int high = hex_value(hex[2 * i]);
    const int low = hex_value(hex[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    digest[i] = static_cast<unsigned char>(high * 16 + low);
  }
  const std::string_view rest = hex.substr(2 * digest.size());
  return rest.empty() || rest.front() == ' ' || rest.front() == '\t';
}

}  // namespace

std::optional<std::string> ApiKeys::load(const std::string& file) {
  const auto wrong = [&](const std::string& reason) { return "--api-keys: " + file + " can't be used: " + reason; };
  errno = 0;
  std::ifstream stream(file);
  if (!stream.good()) return wrong(errno_text(errno) + ".");
  std::vector<Digest> digests;
  std::string line;
  for (int number = 1; std::getline(stream, line); ++number) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty() || line.front() == '#') continue;
    Digest digest;
    if (!parse_digest(line, digest)) {
      return wrong("line " + std::to_string(number) + " is not the SHA-256 of a key; make one by: printf %s \"$KEY\" | sha256sum");
    }
    digests.push_back(digest);
  }
  if (digests.empty()) return wrong("it holds no key.");
  keys_.set(std::move(digests));
  return std::nullopt;
}

bool ApiKeys::allow(std::string_view authorization) const {
  const auto known = keys_.get();
  if (!known) return true;
  constexpr std::string_view kScheme = "Bearer ";
  if (!http1::equal_ignoring_case(authorization.substr(0, kScheme.size()), kScheme)) return false;
  authorization.remove_prefix(kScheme.size());
  while (authorization.starts_with(' ')) authorization.remove_prefix(1);
  Digest digest;
  EVP_Digest(authorization.data(), authorization.size(), digest.data(), nullptr, EVP_sha256(), nullptr);
  bool found = false;
  for (const Digest& key : *known) found |= CRYPTO_memcmp(key.data(), digest.data(), digest.size()) == 0;
  return found;
}

std::optional<int> RateLimit::refuse(const std::string& client, Clock::time_point now) {
  const double per_second = per_second_;
  if (per_second == 0) return std::nullopt;
  const double most = per_second * kBurstSeconds;
  const std::lock_guard lock(mutex_);
  if (buckets_.size() >= kBucketsMax && now >= forget_again_at_) forget_full(now);
  Bucket& bucket = buckets_.try_emplace(client, Bucket{most, now}).first->second;
  const double seconds = std::chrono::duration<double>(now - bucket.filled_at).count();
  bucket.tokens = std::min(most, bucket.tokens + seconds * per_second);
  bucket.filled_at = now;
  if (bucket.tokens >= 1) {
    bucket.tokens -= 1;
    return std::nullopt;
  }
  return static_cast<int>(std::ceil((1 - bucket.tokens) / per_second));
}

void RateLimit::forget_full(Clock::time_point now) {
  forget_again_at_ = now + std::chrono::seconds(1);
  std::erase_if(buckets_, [&](const auto& entry) { return std::chrono::duration<double>(now - entry.second.filled_at).count() >= kBurstSeconds; });
}

std::string client_of(const std::string& address) {
  in6_addr v6{};
  if (inet_pton(AF_INET6, address.c_str(), &v6) != 1) return address;
  std::fill(std::begin(v6.s6_addr) + 8, std::end(v6.s6_addr), static_cast<unsigned char>(0));
  char text[INET6_ADDRSTRLEN];
  return inet_ntop(AF_INET6, &v6, text, sizeof text) == nullptr ? address : std::string(text) + "/64";
}
