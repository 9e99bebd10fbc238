#include "http1.hpp"

#include <algorithm>
#include <charconv>
#include <utility>

#include "text.hpp"

namespace http1 {
namespace {

// Chunk extensions and trailers mean nothing here; a message with more of them than this is not sane.
constexpr size_t kChunkOverheadBytesMax = 64 * 1024;
// 16 hex digits would reach 2^64; 15 leave room to add without overflow.
constexpr int kChunkSizeDigitsMax = 15;

bool is_token_char(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

bool is_token(std::string_view text) { return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char); }

bool is_control(char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f; }

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::optional<std::uint64_t> parse_length(std::string_view digits) {
  std::uint64_t value = 0;
  if (digits.empty() || !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; })) return std::nullopt;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

// `end` is where the empty line after a head begins, if it has arrived. Until then up to three bytes of
// it may be there already, which are not the head's.
bool head_too_large(size_t end, size_t arrived_bytes) {
  return end == std::string_view::npos ? arrived_bytes > kHeadBytesMax + 3 : end > kHeadBytesMax;
}

// Whether a list header, over all its lines, names `token`.
bool lists(const Head& head, std::string_view name, std::string_view token) {
  for (std::string_view value : head.all(name)) {
    while (!value.empty()) {
      const size_t comma = std::min(value.find(','), value.size());
      if (equal_ignoring_case(trim(value.substr(0, comma)), token)) return true;
      value.remove_prefix(std::min(comma + 1, value.size()));
    }
  }
  return false;
}

}  // namespace

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](char x, char y) { return lower(x) == lower(y); });
}

std::vector<std::string_view> Head::all(std::string_view name) const {
  std::vector<std::string_view> values;
  for (const Header& header : headers) {
    if (equal_ignoring_case(header.name, name)) values.push_back(header.value);
  }
  return values;
}

std::optional<Head> parse_head(std::string_view text) {
  Head head;
  bool first = true;
  while (first || !text.empty()) {
    const size_t end = std::min(text.find("\r\n"), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 2, text.size()));
    if (std::any_of(line.begin(), line.end(), is_control)) return std::nullopt;
    if (first) {
      head.start_line = line;
      first = false;
      continue;
    }
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) return std::nullopt;
    head.headers.push_back({line.substr(0, colon), trim(line.substr(colon + 1))});
  }
  return head;
}

BodyDecoder::Status BodyDecoder::next(std::string_view& input, std::string_view& piece) {
  piece = {};
  if (framing_ == Framing::until_close) {
    piece = std::exchange(input, {});
    return Status::more;
  }
  if (framing_ == Framing::length) return take_data(input, piece);
  while (!input.empty() && state_ != State::finished) {
    if (state_ == State::data) return take_data(input, piece);
    const char c = input.front();
    input.remove_prefix(1);
    if (!step(c)) return Status::malformed;
  }
  return state_ == State::finished ? Status::done : Status::more;
}

BodyDecoder::Status BodyDecoder::take_data(std::string_view& input, std::string_view& piece) {
  piece = input.substr(0, std::min<std::uint64_t>(left_, input.size()));
  input.remove_prefix(piece.size());
  left_ -= piece.size();
  if (framing_ == Framing::length) return left_ == 0 ? Status::done : Status::more;
  if (left_ == 0) state_ = State::data_cr;
  return Status::more;
}

// One byte of a chunked body that is not data. False: malformed.
bool BodyDecoder::step(char c) {
  switch (state_) {
    case State::size: return step_size(c);
    case State::extension:
      if (c == '\r') state_ = State::size_lf;
      return c != '\n' && ++overhead_bytes_ <= kChunkOverheadBytesMax;
    case State::size_lf:
      state_ = left_ > 0 ? State::data : State::trailer;
      size_digits_ = 0;
      return c == '\n';
    case State::data_cr: state_ = State::data_lf; return c == '\r';
    case State::data_lf: state_ = State::size; return c == '\n';
    case State::trailer:
      state_ = c == '\r' ? State::last_lf : State::trailer_line;
      return c != '\n' && ++overhead_bytes_ <= kChunkOverheadBytesMax;
    case State::trailer_line:
      if (c == '\r') state_ = State::trailer_lf;
      return c != '\n' && ++overhead_bytes_ <= kChunkOverheadBytesMax;
    case State::trailer_lf: state_ = State::trailer; return c == '\n';
    case State::last_lf: state_ = State::finished; return c == '\n';
    case State::data:
    case State::finished: break;
  }
  return false;
}

bool BodyDecoder::step_size(char c) {
  if (const int digit = hex_value(c); digit >= 0) {
    left_ = (left_ << 4) + static_cast<std::uint64_t>(digit);
    return ++size_digits_ <= kChunkSizeDigitsMax;
  }
  if (size_digits_ == 0) return false;
  if (c == '\r') {
    state_ = State::size_lf;
    return true;
  }
  state_ = State::extension;
  return c == ';' || c == ' ' || c == '\t';
}

bool BodyMemory::Share::grow_to(size_t bytes) {
  if (all_ == nullptr || bytes <= kUncountedBytes || bytes <= bytes_) return true;
  const size_t more = bytes - bytes_;
  if (all_->taken_.fetch_add(more) + more > all_->bytes_max_) {
    all_->taken_ -= more;
    return false;
  }
  bytes_ = bytes;
  return true;
}

void BodyMemory::Share::give_back() {
  if (bytes_ > 0) all_->taken_ -= std::exchange(bytes_, 0);
}

RequestReader::State RequestReader::feed(std::string_view bytes) {
  arrived_.append(bytes);
  if (state_ == State::head) return read_head();
  if (state_ == State::body) return read_body();
  return state_;
}

bool RequestReader::take_expect_continue() { return std::exchange(expect_continue_, false) && state_ == State::body; }

RequestReader::State RequestReader::next() {
  state_ = State::head;
  searched_ = skipped_ = 0;
  method_.clear();
  path_.clear();
  take_body();  // it may have been large; an idle connection keeps nothing of it
  forget_body();
  canonical_head_.clear();
  expect_continue_ = length_missing_ = false;
  if (arrived_.empty()) {
    arrived_.shrink_to_fit();
    return state_;
  }
  return read_head();
}

RequestReader::State RequestReader::refuse(int status, std::string sentence) {
  refusal_ = {status, std::move(sentence)};
  take_body();
  forget_body();
  return state_ = State::refused;
}

RequestReader::State RequestReader::read_head() {
  // Empty lines before a request line are passed over (RFC 9112, 2.2); they count as part of its head.
  size_t empty = 0;
  while (arrived_.compare(empty, 2, "\r\n") == 0) empty += 2;
  arrived_.erase(0, empty);
  skipped_ += empty;
  const size_t end = arrived_.find("\r\n\r\n", searched_ > 3 ? searched_ - 3 : 0);
  searched_ = arrived_.size();
  if (skipped_ > kHeadBytesMax || head_too_large(end, arrived_.size())) return refuse(431, "The request's headers are too large.");
  if (end == std::string::npos) {
    // A first byte that can't begin a method will not become a request by waiting.
    if (!arrived_.empty() && arrived_ != "\r" && !is_token_char(arrived_.front())) return refuse(400, "This is not an HTTP request.");
    return state_;
  }
  const std::string head_text = arrived_.substr(0, end);
  arrived_.erase(0, end + 4);
  searched_ = 0;
  const auto head = parse_head(head_text);
  if (!head) return refuse(400, "The request's headers are malformed.");
  if (!read_request_line(head->start_line)) return state_;
  if (head->headers.size() > kHeadersMax) return refuse(431, "The request has too many headers.");
  if (!read_framing(*head) || !read_expectation(*head)) return state_;
  write_canonical_head(*head);
  state_ = State::body;
  return read_body();
}

bool RequestReader::read_request_line(std::string_view line) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last || !is_token(line.substr(0, first))) {
    refuse(400, "The request line is malformed.");
    return false;
  }
  std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    refuse(version.starts_with("HTTP/") ? 505 : 400, "Only HTTP/1.1 and HTTP/1.0 are served.");
    return false;
  }
  // A target may be a whole URL (RFC 9112, 3.2.2).
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!target.starts_with(scheme)) continue;
    const size_t slash = target.find('/', scheme.size());
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  if (target.size() > kTargetBytesMax) {
    refuse(414, "The request's path is too long.");
    return false;
  }
  const bool asterisk = target == "*" && line.starts_with("OPTIONS ");
  if ((!target.starts_with('/') && !asterisk) || target.find_first_of(" \t") != std::string_view::npos) {
    refuse(400, "The request's path is malformed.");
    return false;
  }
  method_ = line.substr(0, first);
  target_ = asterisk ? "/" : target;
  path_ = target_.substr(0, target_.find_first_of("?#"));
  version_1_0_ = version == "HTTP/1.0";
  return true;
}

bool RequestReader::read_framing(const Head& head) {
  const auto lengths = head.all("Content-Length");
  const auto encodings = head.all("Transfer-Encoding");
  for (const std::string_view encoding : head.all("Content-Encoding")) {
    if (equal_ignoring_case(encoding, "identity")) continue;
    refuse(415, "A Content-Encoding is not supported: send the body as it is.");
    return false;
  }
  for (const std::string_view type : head.all("Content-Type")) {
    if (!equal_ignoring_case(type.substr(0, 10), "multipart/")) continue;
    refuse(415, "A multipart body is not supported: send JSON.");
    return false;
  }
  if (lengths.size() > 1 || encodings.size() > 1 || (!lengths.empty() && !encodings.empty()) || head.all("Host").size() > 1) {
    refuse(400, "The request's framing is ambiguous.");
    return false;
  }
  decoder_ = BodyDecoder::none();
  if (!encodings.empty()) {
    if (version_1_0_ || !equal_ignoring_case(encodings.front(), "chunked")) {
      refuse(400, "This Transfer-Encoding is not supported: use chunked or a Content-Length.");
      return false;
    }
    decoder_ = BodyDecoder::chunked();
  } else if (!lengths.empty()) {
    const auto length = parse_length(lengths.front());
    if (!length) {
      refuse(400, "Content-Length is not a number.");
      return false;
    }
    if (*length > body_bytes_max_) {
      refuse(413, "The request's body is larger than " + std::to_string(body_bytes_max_) + " bytes.");
      return false;
    }
    decoder_ = BodyDecoder::of_length(*length);
  } else {
    length_missing_ = method_ == "POST";
  }
  return true;
}

bool RequestReader::read_expectation(const Head& head) {
  for (const std::string_view expectation : head.all("Expect")) {
    if (!equal_ignoring_case(expectation, "100-continue")) {
      refuse(417, "Only the expectation 100-continue is supported.");
      return false;
    }
    expect_continue_ = !version_1_0_;
  }
  return true;
}

void RequestReader::write_canonical_head(const Head& head) {
  // The library answers 400 to a method it does not know; here that is a 405 like any other wrong
  // method, so it gets the name of one that it knows and no route has.
  static constexpr std::string_view kKnown[] = {"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"};
  const bool known = std::find(std::begin(kKnown), std::end(kKnown), method_) != std::end(kKnown);
  // Of HTTP/1.0, which knows no chunks, every connection ends with its answer.
  closes_ = version_1_0_ || lists(head, "Connection", "close");
  canonical_head_.assign(known ? method_ : "PATCH").append(" ").append(target_);
  canonical_head_ += version_1_0_ ? " HTTP/1.0\r\n" : " HTTP/1.1\r\n";
  const auto authorizations = head.all("Authorization");
  authorization_ = authorizations.size() == 1 ? authorizations.front() : "";
  canonical_head_ += "Content-Length: 0\r\n\r\n";
}

RequestReader::State RequestReader::read_body() {
  std::string_view input = arrived_;
  auto status = BodyDecoder::Status::more;
  do {
    std::string_view piece;
    status = decoder_.next(input, piece);
    if (body_.size() + piece.size() > body_bytes_max_) {
      return refuse(413, "The request's body is larger than " + std::to_string(body_bytes_max_) + " bytes.");
    }
    if (!share_.grow_to(body_.size() + piece.size())) {
      return refuse(503, "The server has no room for more large requests now: try again later.");
    }
    body_.append(piece);
  } while (status == BodyDecoder::Status::more && !input.empty());
  if (status == BodyDecoder::Status::malformed) return refuse(400, "The request's chunked body is malformed.");
  arrived_.erase(0, arrived_.size() - input.size());
  if (status == BodyDecoder::Status::more) return state_;
  return state_ = State::complete;
}

ResponseHeadReader::State ResponseHeadReader::feed(std::string_view bytes) {
  arrived_.append(bytes);
  began_ = began_ || !bytes.empty();
  while (true) {
    const size_t end = arrived_.find("\r\n\r\n");
    if (head_too_large(end, arrived_.size())) return State::malformed;
    if (end == std::string::npos) return State::more;
    const std::string head_text = arrived_.substr(0, end);
    arrived_.erase(0, end + 4);
    const auto head = parse_head(head_text);
    if (!head || !read(*head)) return State::malformed;
    if (status_ >= 200) return State::complete;
  }
}

bool ResponseHeadReader::read(const Head& head) {
  const std::string_view line = head.start_line;
  if (line.size() < 12 || !line.starts_with("HTTP/1.") || line[8] != ' ') return false;
  const auto status = parse_length(line.substr(9, 3));
  if (!status || *status < 100 || *status > 599 || (line.size() > 12 && line[12] != ' ')) return false;
  status_ = static_cast<int>(*status);
  const auto types = head.all("Content-Type");
  content_type_ = types.empty() ? "" : types.front();
  const bool version_1_1 = line[7] == '1';
  keeps_alive_ = version_1_1 && !lists(head, "Connection", "close");
  const auto lengths = head.all("Content-Length");
  if (status_ == 204 || status_ == 304 || status_ < 200) {
    body_ = BodyDecoder::none();
  } else if (lists(head, "Transfer-Encoding", "chunked")) {
    body_ = BodyDecoder::chunked();
  } else if (!lengths.empty()) {
    const auto length = parse_length(lengths.front());
    if (!length || lengths.size() > 1) return false;
    body_ = BodyDecoder::of_length(*length);
  } else {
    body_ = BodyDecoder::until_close();
  }
  keeps_alive_ = keeps_alive_ && !body_.ends_at_close();
  return true;
}

}  // namespace http1
