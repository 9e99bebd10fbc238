// HTTP/1.1 messages as they arrive in pieces (RFC 9112): the requests of clients and the responses of
// Ollama. Pure: bytes in, facts out; each object belongs to one thread at a time.
//
// chatterd reads requests itself and hands cpp-httplib only what it has checked, because the library
// (0.11 above all) accepts ambiguous framing, lets limits be passed by chunked and compressed bodies,
// and reads headers and bodies without an overall deadline.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace http1 {

/// A message's start line and headers; 32 KB is four times what browsers send.
constexpr size_t kHeadBytesMax = 32 * 1024;
/// The library's own limit for a request line is 8,192 bytes.
constexpr size_t kTargetBytesMax = 8000;
constexpr size_t kHeadersMax = 100;

struct Header {
  std::string_view name;
  std::string_view value;  ///< without white space around it
};

/// Views into the text that was parsed.
struct Head {
  std::string_view start_line;
  std::vector<Header> headers;

  /// All values of one header, by its name in any case.
  std::vector<std::string_view> all(std::string_view name) const;
};

/// Parses a head without its final empty line. Nothing: not a head by RFC 9112 (a name that is no
/// token, a space before the colon, a folded line, a control byte, a bare CR or LF).
std::optional<Head> parse_head(std::string_view text);

bool equal_ignoring_case(std::string_view a, std::string_view b);

/// Takes a body out of a stream of bytes by one of the four framings.
class BodyDecoder {
 public:
  enum class Status { more, done, malformed };

  static BodyDecoder none() { return BodyDecoder(Framing::length, 0); }
  static BodyDecoder of_length(std::uint64_t bytes) { return BodyDecoder(Framing::length, bytes); }
  static BodyDecoder chunked() { return BodyDecoder(Framing::chunked, 0); }
  static BodyDecoder until_close() { return BodyDecoder(Framing::until_close, 0); }

  /// Takes a front part off `input` and points `piece` at the bytes of the body in it (perhaps none).
  /// Call again until `input` is empty or the status is not `more`; after `done`, what is left in
  /// `input` belongs to the next message.
  Status next(std::string_view& input, std::string_view& piece);

  /// Whether the end of the connection is this body's proper end.
  bool ends_at_close() const { return framing_ == Framing::until_close; }

 private:
  enum class Framing { length, chunked, until_close };
  enum class State { size, extension, size_lf, data, data_cr, data_lf, trailer, trailer_line, trailer_lf, last_lf, finished };

  BodyDecoder(Framing framing, std::uint64_t left) : framing_(framing), left_(left) {}
  Status take_data(std::string_view& input, std::string_view& piece);
  bool step(char c);
  bool step_size(char c);

  Framing framing_;
  State state_ = State::size;
  std::uint64_t left_;        // of the body or chunk
  int size_digits_ = 0;
  size_t overhead_bytes_ = 0;  // of extensions and trailers, which are thrown away
};

/// Why a request can't be served: the status to answer, and a sentence for the client.
struct Refusal {
  int status;
  std::string sentence;
};

/// The memory that the bodies of all connections' requests take together. It outlives them. Any thread.
class BodyMemory {
 public:
  /// Bodies of up to this are not counted: most are, and the connections' number bounds them.
  static constexpr size_t kUncountedBytes = 16 * 1024;

  explicit BodyMemory(size_t bytes_max) : bytes_max_(bytes_max) {}
  void set_max(size_t bytes_max) { bytes_max_ = bytes_max; }

  /// One body's part of it, given back with the object. Its object belongs to one thread at a time.
  class Share {
   public:
    explicit Share(BodyMemory* all) : all_(all) {}  ///< null: nothing is counted
    Share(Share&& other) noexcept : all_(other.all_), bytes_(std::exchange(other.bytes_, 0)) {}
    ~Share() { give_back(); }
    /// Before a body takes `bytes` in all. False: there is no room for them, and the share is as it was.
    bool grow_to(size_t bytes);
    void give_back();

   private:
    BodyMemory* all_;
    size_t bytes_ = 0;
  };

 private:
  std::atomic<size_t> taken_{0};
  std::atomic<size_t> bytes_max_;
};

/// Reads the requests of one connection, one after the other.
class RequestReader {
 public:
  enum class State { head, body, complete, refused };

  explicit RequestReader(size_t body_bytes_max, BodyMemory* memory = nullptr) : body_bytes_max_(body_bytes_max), share_(memory) {}

  /// Before a request's first byte.
  void set_body_bytes_max(size_t body_bytes_max) { body_bytes_max_ = body_bytes_max; }
  /// Adds what arrived. Bytes behind a complete request are kept for the next one. After `refused`
  /// the connection is of no more use: where the next request would begin is not known.
  State feed(std::string_view bytes);
  State state() const { return state_; }
  /// The client waits for "100 Continue" before it sends its body; true once a request.
  bool take_expect_continue();
  /// Nothing of a next request has arrived yet.
  bool empty() const { return state_ == State::head && arrived_.empty(); }
  /// Goes on to the next request; it may be complete already.
  State next();

  // Of a complete request:
  /// The request for cpp-httplib: the request line, and no body, which it would keep for as long as the answer streams.
  const std::string& canonical_head() const { return canonical_head_; }
  const std::string& body() const { return body_; }
  /// It goes on counting in the memory of all bodies until forget_body() or next().
  std::string take_body() { return std::exchange(body_, std::string()); }
  /// Who took it needs it no more.
  void forget_body() { share_.give_back(); }
  bool length_missing() const { return length_missing_; }  ///< a POST with neither length nor chunks
  bool closes() const { return closes_; }                  ///< the connection ends with its answer

  const std::string& authorization() const { return authorization_; }  ///< the header's value, "" without one

  // Of any request whose first line was read; empty before:
  const std::string& method() const { return method_; }
  const std::string& path() const { return path_; }  ///< as sent, without the query
  bool version_1_0() const { return version_1_0_; }

  /// Of a refused request.
  const Refusal& refusal() const { return refusal_; }

 private:
  State refuse(int status, std::string sentence);
  State read_head();
  bool read_request_line(std::string_view line);
  bool read_framing(const Head& head);
  bool read_expectation(const Head& head);
  void write_canonical_head(const Head& head);
  State read_body();

  size_t body_bytes_max_;
  State state_ = State::head;
  std::string arrived_;   // not yet taken
  size_t searched_ = 0;   // of arrived_, for the end of the head
  size_t skipped_ = 0;    // bytes of empty lines before it
  BodyDecoder decoder_ = BodyDecoder::none();
  std::string method_, path_, target_, authorization_;
  bool version_1_0_ = false;
  bool expect_continue_ = false;
  bool length_missing_ = false;
  bool closes_ = false;
  std::string canonical_head_;
  std::string body_;
  BodyMemory::Share share_;
  Refusal refusal_{400, ""};
};

/// Reads the head of one response, passing over 1xx responses.
class ResponseHeadReader {
 public:
  enum class State { more, complete, malformed };
  /// Adds what arrived. When complete, rest() is what came behind the head.
  State feed(std::string_view bytes);
  int status() const { return status_; }
  const std::string& content_type() const { return content_type_; }
  BodyDecoder body() const { return body_; }
  /// Whether the connection may carry another request when the body has ended.
  bool keeps_alive() const { return keeps_alive_; }
  std::string_view rest() const { return arrived_; }
  bool began() const { return began_; }  ///< at least one byte arrived

 private:
  bool read(const Head& head);

  std::string arrived_;
  bool began_ = false;
  int status_ = 0;
  std::string content_type_;
  BodyDecoder body_ = BodyDecoder::none();
  bool keeps_alive_ = false;
};

}  // namespace http1
