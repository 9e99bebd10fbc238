#include "tests/catch.hpp"

#include <string>

#include "http1.hpp"

using http1::RequestReader;
using http1::ResponseHeadReader;
using State = RequestReader::State;

namespace {

constexpr size_t kBodyMax = 1000;

RequestReader read(const std::string& text, size_t piece_bytes = 1 << 20) {
  RequestReader reader(kBodyMax);
  for (size_t at = 0; at < text.size(); at += piece_bytes) reader.feed(std::string_view(text).substr(at, piece_bytes));
  return reader;
}

int refusal_of(const std::string& text) {
  const RequestReader reader = read(text);
  return reader.state() == State::refused ? reader.refusal().status : 0;
}

std::string post(const std::string& headers, const std::string& body) { return "POST /llmchat/?q=1 HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n" + body; }

std::string decode_chunks(const std::string& text, size_t piece_bytes) {
  auto decoder = http1::BodyDecoder::chunked();
  std::string body;
  for (size_t at = 0; at < text.size(); at += piece_bytes) {
    std::string_view input = std::string_view(text).substr(at, piece_bytes);
    while (!input.empty()) {
      std::string_view piece;
      const auto status = decoder.next(input, piece);
      body += piece;
      if (status == http1::BodyDecoder::Status::malformed) return "malformed";
      if (status == http1::BodyDecoder::Status::done) return body + "|" + std::string(input);
    }
  }
  return body + "...";
}

}  // namespace

TEST_CASE("a request is the same however its bytes arrive", "[http1]") {
  const std::string text = post("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: t\r\n\r\n");
  const size_t piece_bytes = GENERATE(1u, 2u, 3u, 7u, 1000u);
  const RequestReader reader = read(text, piece_bytes);
  REQUIRE(reader.state() == State::complete);
  CHECK(reader.body() == "abc0123456789");
  CHECK(reader.method() == "POST");
  CHECK(reader.path() == "/llmchat/");
  CHECK(reader.canonical_head() == "POST /llmchat/?q=1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
  CHECK_FALSE(reader.closes());
}

TEST_CASE("requests that follow one another are read one by one", "[http1]") {
  RequestReader reader(kBodyMax);
  CHECK(reader.feed(post("Content-Length: 2\r\n", "ab") + "\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\nGE") == State::complete);
  CHECK(reader.body() == "ab");
  CHECK(reader.next() == State::complete);
  CHECK(reader.body().empty());
  CHECK(reader.method() == "GET");
  CHECK(reader.canonical_head() == "GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
  CHECK(reader.closes());
  CHECK(reader.next() == State::head);
  CHECK_FALSE(reader.empty());
}

TEST_CASE("only what handlers read reaches the library: no Range, no Content-Type, no Accept", "[http1]") {
  const auto reader = read("GET / HTTP/1.1\r\nRange: bytes=0-1\r\nAccept: ;;;\r\nContent-Type: x\r\nREMOTE_ADDR: 1\r\n\r\n");
  CHECK(reader.canonical_head() == "GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
}

TEST_CASE("ambiguous or malformed framing is refused (1.3)", "[http1]") {
  const auto headers = GENERATE(as<std::string>(), "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "Content-Length: 2\r\nContent-Length: 2\r\n",
                                "Content-Length: +2\r\n", "Content-Length: 2, 2\r\n", "Content-Length: \r\n", "Content-Length: 99999999999999999999\r\n",
                                "Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "Content-Length : 2\r\n",
                                "Host: y\r\n", "X: a\x01" "b\r\n", " folded: x\r\n", ": x\r\n", "no colon\r\n", "X: a\rb\r\n");
  CAPTURE(headers);
  CHECK(refusal_of(post(headers, "ab")) == 400);
}

TEST_CASE("a malformed chunked body is refused", "[http1]") {
  const auto body = GENERATE(as<std::string>(), "-2\r\nab\r\n0\r\n\r\n", "\r\nab", "2\nab\r\n", "2\r\nabX\r\n", "x\r\n", "ffffffffffffffff\r\na", "2 x;\n", "0x2\r\nab\r\n");
  CAPTURE(body);
  CHECK(refusal_of(post("Transfer-Encoding: chunked\r\n", body)) == 400);
}

TEST_CASE("a body over the limit is refused, declared or chunked, and not read on (1.5)", "[http1]") {
  CHECK(refusal_of(post("Content-Length: 1001\r\n", "")) == 413);
  CHECK(refusal_of(post("Content-Length: 1000\r\n", std::string(1000, 'x'))) == 0);
  CHECK(refusal_of(post("Transfer-Encoding: chunked\r\n", "3e9\r\n" + std::string(1001, 'x'))) == 413);
  CHECK(refusal_of(post("Transfer-Encoding: chunked\r\n", "fffffffffffffff\r\n" + std::string(1001, 'x'))) == 413);
}

TEST_CASE("a content encoding and multipart are refused, other types are ignored (1.3)", "[http1]") {
  CHECK(refusal_of(post("Content-Encoding: gzip\r\nContent-Length: 2\r\n", "ab")) == 415);
  CHECK(refusal_of(post("Content-Type: Multipart/form-data; boundary=x\r\nContent-Length: 2\r\n", "ab")) == 415);
  CHECK(refusal_of(post("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 2\r\n", "ab")) == 0);
}

TEST_CASE("headers are limited in size and number", "[http1]") {
  CHECK(refusal_of("GET / HTTP/1.1\r\nX: " + std::string(http1::kHeadBytesMax, 'x')) == 431);
  std::string many = "GET / HTTP/1.1\r\n";
  for (size_t i = 0; i <= http1::kHeadersMax; ++i) many += "X: y\r\n";
  CHECK(refusal_of(many + "\r\n") == 431);
  CHECK(refusal_of("GET /" + std::string(http1::kTargetBytesMax, 'x') + " HTTP/1.1\r\n\r\n") == 414);
}

TEST_CASE("empty lines before a request are passed over, but not without end", "[http1]") {
  CHECK(read("\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 3).state() == State::complete);
  std::string lines;
  while (lines.size() < 1'000'000) lines += "\r\n";
  const RequestReader reader = read(lines, 1000);
  CHECK(reader.state() == State::refused);
  CHECK(reader.refusal().status == 431);
}

TEST_CASE("what is not HTTP/1 is refused at once", "[http1]") {
  CHECK(refusal_of("\x16\x03\x01") == 400);
  CHECK(refusal_of("GET /\r\n\r\n") == 400);
  CHECK(refusal_of("GET x HTTP/1.1\r\n\r\n") == 400);
  CHECK(refusal_of("PRI * HTTP/2.0\r\n\r\n") == 505);
  CHECK(refusal_of("GET / / HTTP/1.1\r\n\r\n") == 400);
}

TEST_CASE("a POST without a length is known as such (1.3), and a body may be waited for with 100-continue", "[http1]") {
  CHECK(read("POST / HTTP/1.1\r\n\r\n").length_missing());
  RequestReader reader(kBodyMax);
  CHECK(reader.feed(post("Expect: 100-continue\r\nContent-Length: 2\r\n", "")) == State::body);
  CHECK(reader.take_expect_continue());
  CHECK_FALSE(reader.take_expect_continue());
  CHECK(reader.feed("ab") == State::complete);
  CHECK(refusal_of(post("Expect: rain\r\nContent-Length: 2\r\n", "ab")) == 417);
}

TEST_CASE("bodies share their memory: one without room is refused with 503, and each gives back what it had", "[http1]") {
  constexpr size_t kSize = 20'000;
  http1::BodyMemory memory(2 * kSize + 1);
  const std::string text = post("Content-Length: " + std::to_string(kSize) + "\r\n", std::string(kSize, 'x'));
  RequestReader first(kSize, &memory), second(kSize, &memory);
  CHECK(first.feed(text) == State::complete);
  const std::string taken = first.take_body();  // somebody has it now
  CHECK(second.feed(text) == State::complete);
  RequestReader third(kSize, &memory);
  CHECK(third.feed(text) == State::refused);
  CHECK(third.refusal().status == 503);
  CHECK(third.body().empty());
  first.forget_body();
  CHECK(RequestReader(kSize, &memory).feed(text) == State::complete);  // and gone
  second.next();
  RequestReader fourth(kSize, &memory), fifth(kSize, &memory), small(kSize, &memory);
  CHECK(fourth.feed(text) == State::complete);
  CHECK(fifth.feed(text) == State::complete);
  CHECK(small.feed(post("Content-Length: 9000\r\n", std::string(9000, 'x'))) == State::complete);
}

TEST_CASE("a method that the library does not know reaches it as one that no route has (1.2)", "[http1]") {
  const auto reader = read("BREW / HTTP/1.1\r\n\r\n");
  CHECK(reader.method() == "BREW");
  CHECK(reader.canonical_head().find("PATCH / ") == 0);
}

TEST_CASE("a chunked body is decoded wherever its pieces are cut", "[http1]") {
  const size_t piece_bytes = GENERATE(1u, 2u, 5u, 100u);
  CHECK(decode_chunks("3\r\nabc\r\n1F\r\n0123456789012345678901234567890\r\n0\r\n\r\n", piece_bytes).find("abc0123456789012345678901234567890|") == 0);
  CHECK(decode_chunks("3\r\nab", piece_bytes) == "ab...");
}

TEST_CASE("a response's head is read with its framing", "[http1]") {
  ResponseHeadReader reader;
  CHECK(reader.feed("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-") == ResponseHeadReader::State::more);
  CHECK(reader.feed("Encoding: chunked\r\n\r\n2\r\nab") == ResponseHeadReader::State::complete);
  CHECK(reader.status() == 200);
  CHECK(reader.content_type() == "application/x-ndjson");
  CHECK(reader.keeps_alive());
  CHECK(reader.rest() == "2\r\nab");
}

TEST_CASE("a response without a length ends with its connection", "[http1]") {
  ResponseHeadReader reader;
  CHECK(reader.feed("HTTP/1.0 200 OK\r\n\r\n") == ResponseHeadReader::State::complete);
  CHECK(reader.body().ends_at_close());
  CHECK_FALSE(reader.keeps_alive());
}

TEST_CASE("what is not a response is known as such", "[http1]") {
  const auto text = GENERATE(as<std::string>(), "SSH-2.0\r\n\r\n", "HTTP/1.1 20\r\n\r\n", "HTTP/1.1 999 x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
                             "HTTP/1.1 200 OK\r\nX: " + std::string(http1::kHeadBytesMax, 'x'));
  ResponseHeadReader reader;
  CHECK(reader.feed(text) == ResponseHeadReader::State::malformed);
}
