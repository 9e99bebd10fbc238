// One streamed answer: from Ollama's bytes to the client's, and what of it is to be stored.
//
// The thread that serves the request has one wait for everything: Ollama's next bytes, the client that
// leaves, the time for a ping, every limit and the server's stop. In a long answer the lines are passed on
// by the server's pump, and that thread sleeps until there is something else to do.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "config.hpp"
#include "ndjson.hpp"
#include "net.hpp"
#include "ollama.hpp"
#include "text.hpp"

/// How an answer ended.
enum class Ending {
  complete,     ///< Ollama ended it as it should
  broken,       ///< the connection to Ollama broke, or could not be had
  silent,       ///< Ollama said nothing for too long
  too_long,     ///< it went over its time
  too_large,    ///< a line or the whole went over its size
  stopping,     ///< chatterd is told to stop
  client_left,  ///< nobody is there to hear how it ends
};

/// What an answer looks like to the client. Pure: bytes in, bytes out.
class Framing {
 public:
  virtual ~Framing() = default;
  /// Appends what becomes of the next bytes of Ollama's body. False: a line is over its limit.
  virtual bool take(std::string_view bytes, std::string& out) = 0;
  /// Appends what the client has to hear at the end; `problem` is a sentence, empty when the answer is
  /// complete. False: it can't be told within the framing, and the connection has to be cut.
  virtual bool close(const std::string& problem, std::string& out) = 0;
  /// Keeps a silent stream open; empty: this framing knows nothing for it.
  virtual std::string_view ping() const { return ""; }
  virtual long lines() const = 0;
  /// The answer says itself that it is complete; only its connection has yet to end.
  virtual bool done() const { return false; }
  /// Among its lines was an error.
  virtual bool has_errors() const { return false; }
};

/// /llmchat/: each line an SSE event (contract 3.7 to 3.9), and the reply's text for the database.
class SseFraming : public Framing {
 public:
  SseFraming(size_t line_bytes_max, bool keep_whitespace) : lines_(line_bytes_max), reply_(keep_whitespace) {}
  bool take(std::string_view bytes, std::string& out) override;
  bool close(const std::string& problem, std::string& out) override;
  std::string_view ping() const override;
  long lines() const override { return line_count_; }
  bool done() const override { return done_; }
  bool has_errors() const override { return has_errors_; }
  const std::string& reply() const { return reply_.text(); }

 private:
  void frame(std::string_view line, std::string& out);

  LineSplitter lines_;
  ReplyText reply_;
  long line_count_ = 0;
  bool done_ = false;        // the line with done:true has come
  bool error_last_ = false;  // Ollama's own error was its last line
  bool has_errors_ = false;
};

/// /llmprompt/: Ollama's bytes as they are.
class RawFraming : public Framing {
 public:
  /// Whether lines of JSON are expected, so that an error may be told as one more line.
  explicit RawFraming(bool ndjson) : ndjson_(ndjson) {}
  bool take(std::string_view bytes, std::string& out) override;
  bool close(const std::string& problem, std::string& out) override;
  long lines() const override { return line_count_; }

 private:
  bool ndjson_;
  bool at_line_start_ = true;
  long line_count_ = 0;
};

/// The sentence for a client about an answer that ended otherwise than complete.
std::string describe(Ending ending);

/// Runs one answer from its first byte to its last.
class Relay {
 public:
  /// Sends bytes to the client at once. False: the client is gone.
  using Send = std::function<bool(std::string_view)>;

  Relay(const Config& config, Waiter& waiter, Send send) : config_(config), waiter_(waiter), send_(std::move(send)) {}

  /// Reads the generation to its end and sends what `framing` makes of it, but for the framing's
  /// closing words. The status may still be awaited (contract 3.5); one of 400 or more goes into
  /// `problem`, with Ollama's own words.
  Ending run(Generation& generation, Framing& framing, std::string& problem);
  /// Sends a ping when it is due, after waiting up to `pause`. For work after the answer's end.
  Wake idle(milliseconds pause, const Framing& framing);
  /// Calls `f` once, before the first bytes are sent.
  void on_first_bytes(std::function<void()> f) { on_first_bytes_ = std::move(f); }

 private:
  std::optional<Ending> pass_on(Generation& generation, Framing& framing, Deadline whole);
  bool send(std::string_view bytes);
  bool ping_if_due(const Framing& framing);
  Deadline next_ping(const Framing& framing) const;

  const Config& config_;
  Waiter& waiter_;
  Send send_;
  std::function<void()> on_first_bytes_;
  Clock::time_point last_sent_ = Clock::now();
  Clock::time_point heard_at_ = last_sent_;  // of Ollama
  size_t received_bytes_ = 0;
  std::string out_;
};

/// The text of Ollama's error answer (`{"error":"..."}`), or a sentence with the status when it has none.
std::string error_text(int status, std::string_view body);
/// Reads the small body of an error answer.
std::string read_error(Generation& generation, Waiter& waiter);
