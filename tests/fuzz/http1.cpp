// Fuzz target: HTTP/1.1 in pieces. The input is a character of choices, the cuts, and what arrives. In
// it, the byte 0xFE and one more, n, stand for n times 128 letters, so that small inputs reach the limits.
#include "http1.hpp"

#include <algorithm>

#include "tests/fuzz/fuzz.hpp"
#include "tests/fuzz/reference.hpp"

namespace fuzz {
namespace {

using ::http1::BodyDecoder;
using ::http1::RequestReader;
using ::http1::ResponseHeadReader;
using State = RequestReader::State;

// Bits of the first character.
constexpr unsigned kIsResponse = 1;
constexpr unsigned kSmallBody = 2;

std::string expand(std::string_view text) {
  std::string expanded;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\xFE' || i + 1 == text.size()) expanded += text[i];
    else expanded.append(std::size_t{128} * static_cast<unsigned char>(text[++i]), 'a');
  }
  return expanded;
}

struct Request {
  std::string method, path, head, body, authorization;
  bool length_missing = false;
  bool version_1_0 = false;
  bool closes = false;
  friend bool operator==(const Request&, const Request&) = default;
};

// Everything that came of a connection's bytes.
struct Connection {
  std::vector<Request> requests;
  State state = State::head;
  int refused_with = 0;
};

Request check_request(const RequestReader& reader, std::size_t body_bytes_max) {
  const std::string& head = reader.canonical_head();
  const std::string& body = reader.body();
  expect(body.size() <= body_bytes_max, "no body is over its limit");
  const auto lines = head.ends_with("\r\n\r\n") ? ::http1::parse_head(std::string_view(head).substr(0, head.size() - 4)) : std::nullopt;
  expect(lines.has_value(), "the canonical head is a head");
  const std::string_view line = lines->start_line;
  expect(!has_control_byte(line) && std::count(line.begin(), line.end(), ' ') == 2, "the canonical request line has three words and no control byte");
  expect(lines->headers.size() == 1 && lines->all("Content-Length") == std::vector<std::string_view>{"0"},
         "the canonical head has one header, which says that there is no body");
  expect(line.substr(line.find(' ') + 1).starts_with(reader.path()) && reader.path().starts_with('/'), "the path is the target's");
  expect(!reader.length_missing() || body.empty(), "without a length there is no body");
  expect(reader.closes() || !reader.version_1_0(), "HTTP/1.0 ends its connection");
  expect(!has_control_byte(reader.method()) && !has_control_byte(reader.path()), "method and path hold no control byte");
  return {reader.method(), reader.path(), head, body, reader.authorization(), reader.length_missing(), reader.version_1_0(), reader.closes()};
}

// Takes what is complete; the rest stays in the reader.
void collect(RequestReader& reader, std::size_t body_bytes_max, Connection& connection) {
  while (reader.state() == State::complete) {
    connection.requests.push_back(check_request(reader, body_bytes_max));
    reader.next();
  }
  expect(reader.body().size() <= body_bytes_max, "nothing over the limit of a body is kept");
  connection.state = reader.state();
  if (connection.state != State::refused) return;
  connection.refused_with = reader.refusal().status;
  expect(connection.refused_with >= 400 && connection.refused_with <= 505, "a refusal has an error's status");
  expect(!reader.refusal().sentence.empty() && !has_control_byte(reader.refusal().sentence), "a refusal has one sentence");
}

Connection read_requests(std::string_view text, std::size_t body_bytes_max, const Cuts& cuts) {
  RequestReader reader(body_bytes_max);
  Connection connection;
  cuts.for_each(text, [&](std::string_view piece) {
    reader.feed(piece);
    collect(reader, body_bytes_max, connection);
    return connection.state != State::refused;
  });
  return connection;
}

void expect_same(const Connection& a, const Connection& b) {
  expect(a.requests == b.requests, "the requests are the same however the bytes are cut");
  expect(a.state == b.state, "the connection's state is the same however the bytes are cut");
  // What can't become a request is refused at its first byte, or for its length when all is there at once.
  expect(a.refused_with == b.refused_with || a.refused_with == 400 || b.refused_with == 400, "the status is the same however the bytes are cut");
}

// The bytes behind a request are the next one's: another reader makes the same of them.
void check_remainder(std::string_view text, std::size_t body_bytes_max, const Connection& whole) {
  RequestReader reader(body_bytes_max);
  std::size_t used = 0;
  while (used < text.size() && reader.feed(text.substr(used, 1)) != State::complete) ++used;
  if (reader.state() != State::complete) return;
  const Connection others = read_requests(text.substr(used + 1), body_bytes_max, Cuts());
  Connection expected = whole;
  expected.requests.erase(expected.requests.begin());
  expect_same(others, expected);
}

void check_requests(std::string_view text, std::size_t body_bytes_max, const Cuts& cuts) {
  const Connection whole = read_requests(text, body_bytes_max, Cuts());
  expect_same(read_requests(text, body_bytes_max, cuts), whole);
  if (!whole.requests.empty()) check_remainder(text, body_bytes_max, whole);
}

struct Body {
  std::string bytes, rest;
  BodyDecoder::Status status = BodyDecoder::Status::more;
  friend bool operator==(const Body&, const Body&) = default;
};

Body decode(BodyDecoder decoder, std::string_view text, const Cuts& cuts) {
  Body body;
  cuts.for_each(text, [&](std::string_view piece) {
    std::string_view input = piece;
    do {
      std::string_view data;
      if (body.status == BodyDecoder::Status::more) body.status = decoder.next(input, data);
      body.bytes += data;
    } while (body.status == BodyDecoder::Status::more && !input.empty());
    body.rest += input;
    return body.status != BodyDecoder::Status::malformed;
  });
  if (body.status == BodyDecoder::Status::malformed) body.rest.clear();
  return body;
}

struct Response {
  ResponseHeadReader::State state = ResponseHeadReader::State::more;
  int status = 0;
  std::string content_type, rest;
  bool keeps_alive = false;
  bool ends_at_close = false;
  friend bool operator==(const Response&, const Response&) = default;
};

Response read_response(std::string_view text, const Cuts& cuts, BodyDecoder& decoder) {
  ResponseHeadReader reader;
  Response response;
  std::size_t used = 0;
  cuts.for_each(text, [&](std::string_view piece) {
    used += piece.size();
    response.state = reader.feed(piece);
    return response.state == ResponseHeadReader::State::more;
  });
  if (response.state != ResponseHeadReader::State::complete) return response;
  decoder = reader.body();
  response.status = reader.status();
  response.content_type = reader.content_type();
  response.keeps_alive = reader.keeps_alive();
  response.ends_at_close = decoder.ends_at_close();
  response.rest.append(reader.rest()).append(text.substr(used));
  expect(response.status >= 200 && response.status <= 599, "a response has a final status");
  expect(!response.keeps_alive || !response.ends_at_close, "a connection that ends with its answer is not kept");
  const bool plain = std::all_of(response.content_type.begin(), response.content_type.end(), [](char c) { return c != '\r' && c != '\n' && c != '\0'; });
  expect(plain, "a content type is one line");
  return response;
}

void check_response(std::string_view text, const Cuts& cuts) {
  BodyDecoder decoder = BodyDecoder::none();
  BodyDecoder decoder_of_cut = BodyDecoder::none();
  const Response whole = read_response(text, Cuts(), decoder);
  expect(read_response(text, cuts, decoder_of_cut) == whole, "a response's head is the same however the bytes are cut");
  if (whole.state != ResponseHeadReader::State::complete) return;
  const Body body = decode(decoder, whole.rest, Cuts());
  expect(decode(decoder_of_cut, whole.rest, cuts) == body, "a body is the same however the bytes are cut");
  if (body.status == BodyDecoder::Status::done && decoder.ends_at_close()) expect(false, "without a length only the connection's end ends a body");
}

// Any bytes, sent in chunks of the cuts' lengths, come out as they went in.
void check_chunks(std::string_view text, const Cuts& cuts) {
  constexpr std::string_view kNext = "next";
  std::string chunked;
  cuts.for_each(text, [&](std::string_view piece) {
    if (piece.empty()) return true;
    char size[32];
    std::snprintf(size, sizeof size, "%zX;x=y\r\n", piece.size());
    chunked.append(size).append(piece).append("\r\n");
    return true;
  });
  chunked.append("0\r\nT: t\r\n\r\n").append(kNext);
  const Body expected{std::string(text), std::string(kNext), BodyDecoder::Status::done};
  expect(decode(BodyDecoder::chunked(), chunked, Cuts()) == expected, "chunks are decoded to what was encoded");
  expect(decode(BodyDecoder::chunked(), chunked, cuts) == expected, "chunks are decoded to what was encoded however they are cut");
}

}  // namespace

void http1(Bytes bytes) {
  Input input(bytes);
  const unsigned choices = input.byte();
  const Cuts cuts(input);
  const std::string text = expand(input.rest());
  if ((choices & kIsResponse) == 0) check_requests(text, (choices & kSmallBody) != 0 ? 10 : 40'000, cuts);
  else check_response(text, cuts);
  check_chunks(input.rest(), cuts);
}

}  // namespace fuzz

FUZZ_TARGET(http1)
