// The part of the server that speaks with cpp-httplib: one request, from whole to answered.
#include <sys/mman.h>
#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <exception>
#include <thread>
#include <utility>

#include "log.hpp"
#include "server.hpp"
#include "text.hpp"

namespace {

thread_local Exchange* current_exchange = nullptr;

// What httplib writes in small pieces is sent at the latest when it has come to this.
constexpr size_t kHeldBytesMax = 16 * 1024;
// So many lines one by one, with kReadingGap before each, and an answer is lent to the pump; or after so long without
// any, for its next line too should not have to wait for this thread to get a processor.
constexpr int kReadingLines = 2;
constexpr auto kSilence = milliseconds(10);
// The processor that has sent a piece is left to who reads it, so that a client on this machine has its first token
// before this thread is busy with what Ollama has written meanwhile.
constexpr auto kPause = std::chrono::microseconds(100);
// When more answers hurry than there are processors, lines of each gather for this long after so many pieces: its turn
// comes late anyway, and a line that comes with others costs a third.
constexpr auto kGather = milliseconds(1);
constexpr int kPiecesAtOnce = 4;
// A path in the log; longer ones are somebody's experiments.
constexpr size_t kLoggedPathBytesMax = 200;

double ms_of(Clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); }

// Gives back the memory of the stack below the caller's frame that earlier, deeper calls have touched: the
// thread is going to sleep for as long as the stream lasts, and a thousand may do so at once.
void release_unused_stack() {
  constexpr std::uintptr_t kPage = 4096;
  constexpr std::uintptr_t kOwnFrames = 2 * 1024;  // of this call itself
  constexpr std::uintptr_t kDeepest = 64 * 1024;   // that anything before may have gone, well within the stack
  const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  const std::uintptr_t end = (here - kOwnFrames) / kPage * kPage;
  ::madvise(reinterpret_cast<void*>(end - kDeepest), kDeepest, MADV_DONTNEED);
}

}  // namespace

/// The request's head as httplib reads it, and the way back. Versions of httplib (0.11 to 0.41)
/// declare different ones of these members, so none says `override`.
class Exchange::Stream : public httplib::Stream {
 public:
  explicit Stream(Exchange& exchange) : exchange_(exchange), head_(exchange.connection_.reader.canonical_head()) {}

  bool is_readable() const { return true; }
  bool is_writable() const { return !exchange_.gone_; }
  bool wait_readable() const { return true; }
  bool wait_writable() const { return !exchange_.gone_; }
  bool is_peer_alive() const { return !exchange_.gone_; }
  time_t duration() const { return 0; }
  socket_t socket() const { return exchange_.connection_.fd(); }

  ssize_t read(char* out, size_t size) {
    const size_t count = head_.copy(out, size);
    head_.remove_prefix(count);
    return static_cast<ssize_t>(count);
  }
  ssize_t write(const char* data, size_t size) { return exchange_.hold({data, size}) ? static_cast<ssize_t>(size) : -1; }
  void get_remote_ip_and_port(std::string& ip, int& port) const {
    ip = exchange_.client();
    port = 0;
  }
  void get_local_ip_and_port(std::string& ip, int& port) const {
    ip.clear();
    port = 0;
  }

 private:
  Exchange& exchange_;
  std::string_view head_;
};

Exchange& Exchange::current() { return *current_exchange; }

Exchange::Exchange(Server& server, Connection& connection) : server_(server), connection_(connection), id_(make_uuid()) { current_exchange = this; }

Exchange::~Exchange() { current_exchange = nullptr; }

Wake Exchange::wait(int fd, short events, Deadline deadline) {
  pollfd watched[3] = {{fd, events, 0}, {connection_.fd(), POLLRDHUP, 0}, {server_.stop_event_.get(), POLLIN, 0}};
  while (true) {
    const int ready = ::poll(watched, 3, deadline.left_ms());
    if (ready == 0) return Wake::timed_out;
    if (ready < 0 && errno == EINTR) continue;
    if (watched[1].revents != 0) return Wake::client_left;
    if (watched[2].revents != 0) return Wake::stopping;
    return Wake::ready;
  }
}

Wake Exchange::carry(int fd, Deadline deadline, const std::function<Step()>& step) {
  while (true) {
    if (!reading_) {
      const Wake wake = carry_hurried(fd, deadline, step);
      if (!reading_) return wake;
      // Nobody waits for this thread now, but a new client would wait for these to be made.
      server_.workers_->start_ahead();
      if (server_.make_ready_) server_.make_ready_();
    }
    release_unused_stack();
    bool more = true;
    std::exception_ptr thrown;  // goes on on this thread, where it concerns this request only
    lent_ = true;
    const std::optional<Wake> wake = server_.pump_->carry(fd, connection_.fd(), deadline, [&] {
      Step carried = Step::last;
      try {
        carried = step();
        more = carried != Step::last;
      } catch (...) {
        thrown = std::current_exception();
      }
      return held_.empty() ? carried : Step::last;
    });
    lent_ = false;
    if (thrown) std::rethrow_exception(thrown);
    // Unless the client reads slowly, which is for this thread to wait for.
    if (wake == Wake::ready && held_.empty()) reading_ = false;
    if (!flush()) return Wake::client_left;
    if (!wake) return Waiter::carry(fd, deadline, step);
    if (wake != Wake::ready || !more) return *wake;
  }
}

// Carries the stream on this thread until it turns out to come at the pace of reading, or something ends the wait.
Wake Exchange::carry_hurried(int fd, Deadline deadline, const std::function<Step()>& step) {
  const auto many_hurry = [this] { return server_.hurried_ > server_.processors_; };
  std::optional<Counted> counted;
  Lender::Loan real_time = std::move(real_time_);  // until the next piece, or until there is none
  std::this_thread::sleep_for(kPause);
  auto last_piece_at = Clock::now();
  int slow_lines = 0;
  for (int pieces = 1; slow_lines < kReadingLines; ++pieces) {
    // Where many hurry, silence means only that Ollama has no processor.
    const Deadline silence = many_hurry() ? Deadline::never() : Deadline::after(kSilence);
    Wake wake = wait(fd, POLLIN, Deadline::earlier(deadline, silence));
    if (wake == Wake::timed_out && !deadline.passed()) break;
    if (wake != Wake::ready) return wake;
    const auto piece_at = Clock::now();
    const Step carried = step();
    if (carried == Step::last) return wake;
    slow_lines = carried == Step::one && piece_at - last_piece_at >= kReadingGap ? slow_lines + 1 : 0;
    last_piece_at = piece_at;
    real_time.reset();
    if (pieces < kPiecesAtOnce) continue;
    if (!counted) counted.emplace(server_.hurried_);
    if (carried == Step::full || !many_hurry()) continue;
    wake = wait(-1, 0, Deadline::earlier(deadline, Deadline::after(kGather)));
    if (wake != Wake::timed_out) return wake;
    last_piece_at = Clock::now();
  }
  reading_ = true;
  return Wake::ready;
}

Wake Exchange::wait_without_client(Deadline deadline) {
  pollfd watched{server_.stop_event_.get(), POLLIN, 0};
  return ::poll(&watched, 1, deadline.left_ms()) > 0 ? Wake::stopping : Wake::timed_out;
}

bool Exchange::client_left() {
  if (gone_) return true;
  pollfd watched{connection_.fd(), POLLRDHUP, 0};
  return ::poll(&watched, 1, 0) > 0;
}

bool Exchange::keeps_connection() const { return !connection_.reader.closes() && !server_.draining_; }

bool Exchange::hold(std::string_view data) {
  if (gone_) return false;
  held_ += data;
  return held_.size() < kHeldBytesMax || flush();
}

bool Exchange::flush() {
  if (gone_) return false;
  if (held_.empty()) return true;
  if (lent_) {
    std::string_view rest = held_;
    gone_ = connection_.write_some(rest) == Connection::Io::closed;
    held_.erase(0, held_.size() - rest.size());
    return !gone_;
  }
  gone_ = !connection_.write(held_, Deadline::after(connection_.limits().write_timeout), streaming_);
  held_.clear();
  return !gone_;
}

void Exchange::refused_by(metrics::Limit limit) {
  limit_ = metrics::name_of(limit);
  metrics::refused[limit].add();
}

void Exchange::note_client_left() {
  left_ = true;
  reason = "the client left";
}

void Exchange::begin_stream() {
  if (server_.cpu_latency_) server_.cpu_latency_->shorten();
  streaming_ = true;
  awaits_first_bytes_.emplace(server_.awaiting_);
}

// Whom a thread wakes up often gets its processor, and under the fair scheduler keeps it: an Ollama on this machine would
// write a good part of its answer before this thread could even wait for it. In real time it has the first token, and
// what comes during kPause, as soon as they are there; then it is for Ollama and the client to go on. Where many wait,
// more pieces would only mean more work.
void Exchange::note_asked() {
  asked_ = Clock::now();
  if (server_.lender_ && server_.awaiting_ <= server_.processors_) real_time_ = server_.lender_->lend();
}

void Exchange::note_first_bytes() {
  awaits_first_bytes_.reset();
  connection_.reader.forget_body();  // Ollama has it
  const auto now = Clock::now();
  first_token_ms_ = ms_of(now - began_);
  ollama_ms_ = ms_of(now - asked_);
  metrics::count_first_token(route, now - began_, now - asked_);
}

// Whether somebody has to look at it: an error of ours, also one in a stream whose status was sent before.
bool Exchange::failed() const { return status >= 500 || (status < 400 && !reason.empty() && !left_); }

// The request is over: its line in the log, and its place in the metrics.
void Exchange::finish() const {
  const auto took = Clock::now() - began_;
  metrics::count_request(route, status, took);
  LogLine line(failed() ? LogLevel::warning : LogLevel::info, "request");
  const auto& reader = connection_.reader;
  line.add("id", id_).add("status", status).add("client", client()).add("method", reader.method());
  line.add("path", std::string_view(reader.path()).substr(0, kLoggedPathBytesMax)).add("ms", ms_of(took));
  if (lines >= 0) line.add("lines", lines);
  if (has_first_bytes()) line.add("first_token_ms", first_token_ms_).add("ollama_ms", ollama_ms_);
  if (!limit_.empty()) line.add("limit", limit_);
  if (!reason.empty()) line.add("reason", reason);
}

// Has httplib route and answer a complete request. False: the connection is over.
bool Server::answer(Connection& connection) {
  Exchange exchange(*this, connection);
  Exchange::Stream stream(exchange);
  bool answered = false;
  try {
    answered = process(stream, connection.address());
  } catch (const std::exception&) {
    // Handlers' exceptions are httplib's; this one came from httplib itself, in the midst of an answer.
    exchange.reason = "internal error";
  }
  const bool sent = exchange.flush();
  if (!sent && exchange.reason.empty()) exchange.note_client_left();
  exchange.finish();
  if (answered && sent && exchange.keeps_connection()) return true;
  if (sent) connection.finish_writing();
  return false;
}

// Whether a request through cpp-httplib's routing and the first of the handlers is answered, on this thread and
// a connection of its own. Not told to the log.
bool Server::answers_itself() {
  int ends[2];
  // Without descriptors there is nothing to try it with; that is scarcity, not a hang.
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) return true;
  const UniqueFd client(ends[0]);
  Connection connection(UniqueFd(ends[1]), nullptr, "self-check", limits_.get());
  connection.reader.feed("GET / HTTP/1.1\r\nHost: self-check\r\nConnection: close\r\n\r\n");
  Exchange exchange(*this, connection);
  Exchange::Stream stream(exchange);
  try {
    process(stream, connection.address());
  } catch (const std::exception&) {
    return false;
  }
  exchange.flush();
  // Of any status: a 429 is an answer too.
  constexpr std::string_view kAnswer = "HTTP/1.1 ";
  std::array<char, kAnswer.size()> begin;
  return ::recv(client.get(), begin.data(), begin.size(), 0) == static_cast<ssize_t>(begin.size()) &&
         std::string_view(begin.data(), begin.size()) == kAnswer;
}

namespace {

// process_request() got the addresses as parameters in 0.18 and one more parameter since. Calls the
// form that this httplib has.
template <class S>
bool call_process_request(S& server, auto call_new, auto call_old) {
  if constexpr (requires { call_new(server); }) {
    return call_new(server);
  } else {
    return call_old(server);
  }
}

}  // namespace

// To httplib each request is its connection's last: of one that it keeps it would say what does not hold here, and by
// a string stream, a fiftieth of a short turn's work.
bool Server::process(Exchange::Stream& stream, const std::string& address) {
  constexpr bool close = true;
  bool connection_closed = false;
  const std::function<void(httplib::Request&)> no_setup;
  return call_process_request(
      *this,
      [&](auto& server) -> decltype(server.process_request(stream, address, 0, address, 0, close, connection_closed, no_setup)) {
        return server.process_request(stream, address, 0, address, 0, close, connection_closed, no_setup);
      },
      [&](auto& server) { return server.process_request(stream, close, connection_closed, no_setup); });
}
