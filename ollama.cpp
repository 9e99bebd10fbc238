#include "ollama.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "log.hpp"

namespace {

// One recv of the head, with what has come of the body behind it.
constexpr size_t kHeadBytes = 16 * 1024;
// Refusals that another address may not have (Ollama's API documentation, "Errors").
constexpr int kBusyStatus = 503;
constexpr int kNoModelStatus = 404;
// Ollama is near; one that does not take a connection in this time is as good as away.
constexpr auto kConnectMax = std::chrono::seconds(5);
// Kept connections save a connect a turn; idle for longer they are closed, so that a burst leaves nothing after 10 s.
constexpr auto kIdleMax = std::chrono::seconds(7);
// For clients that come at once. What they take is replaced when their answers are under way.
constexpr size_t kConnectedAhead = 2;
// A name's addresses are asked for again after this time.
constexpr auto kResolvedFor = std::chrono::seconds(30);

socklen_t length_of(const sockaddr_storage& address) {
  return address.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
}

// None: errno says why.
UniqueFd new_socket(const sockaddr_storage& address) {
  UniqueFd fd(::socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (fd) ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

bool connect_to(const UniqueFd& fd, const sockaddr_storage& address) {
  return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length_of(address)) == 0;
}

}  // namespace

Generation::Event event_of(Wake wake) {
  switch (wake) {
    case Wake::ready: break;
    case Wake::timed_out: return Generation::Event::timed_out;
    case Wake::client_left: return Generation::Event::client_left;
    case Wake::stopping: return Generation::Event::stopping;
  }
  return Generation::Event::bytes;
}

Generation::Generation(Ollama& ollama, std::string_view method, std::string_view path, std::string body, std::optional<size_t> only)
    : ollama_(ollama),
      method_(method),
      path_(path),
      probe_(only.has_value()),
      // All addresses together have no longer than one has alone.
      connect_max_(Clock::duration(kConnectMax) / (probe_ ? 1 : ollama.upstreams_.size())),
      request_body_(std::move(body)) {
  if (only) tried_.set().reset(*only);
  aim_at(*ollama_.choose(tried_, true));
}

Generation::~Generation() { abandon(); }

// From here on the request is one for this address, where it is counted.
void Generation::aim_at(size_t upstream) {
  upstream_ = upstream;
  tried_.set(upstream);
  const OllamaAddress& address = ollama_.upstreams_[upstream].address;
  request_head_ = method_ + " " + address.api_path + path_ + " HTTP/1.1\r\nHost: " + address.host_header + "\r\nUser-Agent: chatterd\r\n";
  if (method_ == "POST") {
    request_head_ += "Content-Type: application/json\r\nContent-Length: " + std::to_string(request_body_.size()) + "\r\n";
  }
  request_head_ += "\r\n";
  reused_ = false;
  may_reuse_ = true;
  connect_deadline_.reset();
  head_ = {};
  step_ = Step::connect;
}

void Generation::abandon() {
  if (upstream_) ollama_.leave(*std::exchange(upstream_, std::nullopt), std::exchange(reusable_, false) ? std::move(fd_) : UniqueFd());
  fd_.reset();
  step_ = Step::ended;
  unread_ = {};
}

void Generation::note(std::string detail) {
  const bool named = ollama_.upstreams_.size() > 1 && !probe_ && upstream_;
  detail_ = named ? ollama_.upstreams_[*upstream_].address.url + ": " + detail : std::move(detail);
}

// This address has not answered: on to another, and Event::head; or `event`, if there is none.
Generation::Event Generation::fail(Event event, std::string detail) {
  ollama_.fail(*upstream_, detail, probe_);
  note(std::move(detail));
  abandon();
  // Once one has answered, even by a refusal, those that rest are left alone.
  auto next = ollama_.choose(tried_, !refusal_);
  if (!next && refusal_) next = back_to_refusal();
  if (!next) return event;
  aim_at(*next);
  return Event::head;
}

// Leaves an address that refuses for one that may not. False: there is none, this is the answer.
bool Generation::pass_on_refusal() {
  const bool busy = head_.status() == kBusyStatus;
  if (!busy && head_.status() != kNoModelStatus) return false;
  auto next = ollama_.choose(tried_, false);
  if (next && (busy || !refusal_)) refusal_ = {*upstream_, busy};
  if (!next && !busy && refusal_ && refusal_->busy) next = back_to_refusal();
  if (!next) return false;
  abandon();
  aim_at(*next);
  return true;
}

// The others were of no use: whatever that address says now is the answer.
std::optional<size_t> Generation::back_to_refusal() {
  return ollama_.choose(Upstreams::Tried().set().reset(std::exchange(refusal_, std::nullopt)->upstream), true);
}

Generation::Event Generation::read_head(Waiter& waiter, Deadline deadline) {
  while (true) {
    Event event = Event::unreachable;
    switch (step_) {
      case Step::connect: event = connect_next(); break;
      case Step::connecting: event = finish_connecting(waiter, deadline); break;
      case Step::send: event = send_request(waiter, deadline); break;
      case Step::receive_head: event = receive_head(waiter, deadline); break;
      case Step::body: return Event::head;
      case Step::ended: return Event::unreachable;
    }
    if (event != Event::head) return event;  // head here means: on to the next step
  }
}

// Takes an idle connection, or begins to connect to the next of the name's IP addresses.
Generation::Event Generation::connect_next() {
  unsent_ = request_head_.size() + request_body_.size();
  if (!connect_deadline_) {
    if (UniqueFd idle = may_reuse_ ? ollama_.take_idle(*upstream_) : UniqueFd()) {
      fd_ = std::move(idle);
      reused_ = true;
      step_ = Step::send;
      return Event::head;
    }
    Ollama::Resolved resolved = ollama_.resolve(*upstream_);
    if (resolved.list.empty()) return fail(Event::unreachable, resolved.error);
    ways_ = std::move(resolved.list);
    connect_deadline_ = Deadline::after(connect_max_);
  }
  if (ways_.empty()) return fail(Event::unreachable, std::move(connect_error_));
  const sockaddr_storage address = ways_.front();
  way_deadline_ = Deadline::after((connect_deadline_->at() - Clock::now()) / static_cast<Clock::rep>(ways_.size()));
  ways_.erase(ways_.begin());
  fd_ = new_socket(address);
  if (!fd_) {
    note(errno_text(errno));  // no fault of that address
    abandon();
    return Event::unreachable;
  }
  if (connect_to(fd_, address)) {
    step_ = Step::send;
  } else if (errno == EINPROGRESS) {
    step_ = Step::connecting;
  } else {
    connect_error_ = errno_text(errno);  // and on to the next one
  }
  return Event::head;
}

Generation::Event Generation::finish_connecting(Waiter& waiter, Deadline deadline) {
  const Wake wake = waiter.wait(fd_.get(), POLLOUT, Deadline::earlier(deadline, way_deadline_));
  if (wake == Wake::timed_out && !way_deadline_.passed()) return Event::timed_out;
  if (wake == Wake::timed_out) {
    connect_error_ = "no connection in time";
    step_ = Step::connect;
    return Event::head;
  }
  if (wake != Wake::ready) return event_of(wake);
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
  if (error != 0) connect_error_ = errno_text(error);
  step_ = error == 0 ? Step::send : Step::connect;
  return Event::head;
}

Generation::Event Generation::send_request(Waiter& waiter, Deadline deadline) {
  while (unsent_ > 0) {
    const size_t of_body = std::min(unsent_, request_body_.size());
    const size_t of_head = unsent_ - of_body;
    iovec rest[] = {{request_head_.data() + (request_head_.size() - of_head), of_head},
                    {request_body_.data() + (request_body_.size() - of_body), of_body}};
    msghdr message{};
    message.msg_iov = rest;
    message.msg_iovlen = std::size(rest);
    const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
    if (sent > 0) {
      unsent_ -= static_cast<size_t>(sent);
    } else if (errno == EAGAIN) {
      // Ollama may answer, with an error say, before it has read everything.
      const Wake wake = waiter.wait(fd_.get(), POLLOUT, deadline);
      if (wake != Wake::ready) return event_of(wake);
    } else if (errno != EINTR) {
      if (try_again()) return Event::head;
      break;  // its answer may be there all the same
    }
  }
  step_ = Step::receive_head;
  return Event::head;
}

Generation::Event Generation::receive_head(Waiter& waiter, Deadline deadline) {
  const Wake wake = waiter.wait(fd_.get(), POLLIN, deadline);
  if (wake != Wake::ready) return event_of(wake);
  std::array<char, kHeadBytes> buffer;
  const ssize_t received = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return Event::head;
  if (received <= 0) {
    if (!head_.began() && try_again()) return Event::head;
    return fail(Event::broken, received < 0 ? errno_text(errno) : "the connection was closed before an answer");
  }
  switch (head_.feed({buffer.data(), static_cast<size_t>(received)})) {
    case http1::ResponseHeadReader::State::more: return Event::head;
    case http1::ResponseHeadReader::State::malformed: return fail(Event::broken, "the answer is not HTTP/1.1");
    case http1::ResponseHeadReader::State::complete: break;
  }
  ollama_.answer(*upstream_);
  if (pass_on_refusal()) return Event::head;
  // Each line would be acknowledged by a packet of its own, sent by who reads it. Nothing waits for that: so with
  // the next line, or after a moment (tcp(7)).
  const int off = 0;
  ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_QUICKACK, &off, sizeof off);
  body_ = head_.body();
  unread_ = head_.rest();
  std::string().swap(request_body_);  // an assignment would keep the memory of a long history while the answer streams
  step_ = Step::body;
  return Event::head;
}

// A kept connection may turn out to have been closed by Ollama: once more, on a new one, for another kept
// one may be as dead.
bool Generation::try_again() {
  if (!std::exchange(reused_, false)) return false;
  fd_.reset();
  may_reuse_ = false;
  step_ = Step::connect;
  return true;
}

void Generation::receive(std::span<char> buffer) {
  if (step_ != Step::body) return;
  const ssize_t received = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
  if (received > 0) {
    unread_ = {buffer.data(), static_cast<size_t>(received)};
  } else if (received == 0 && body_.ends_at_close()) {
    step_ = Step::ended;
  } else if (received == 0 || (errno != EAGAIN && errno != EINTR)) {
    break_off(received == 0 ? "the connection was closed in mid-answer" : errno_text(errno));
  }
}

// The connection is closed by abandon(): during a step it is being watched.
void Generation::break_off(std::string detail) {
  note(std::move(detail));
  broken_ = true;
  step_ = Step::ended;
  unread_ = {};
}

std::optional<Generation::Event> Generation::ended() {
  if (step_ == Step::body && !broken_) return std::nullopt;
  return broken_ ? Event::broken : Event::end;
}

std::string Generation::read_small(Waiter& waiter, Deadline deadline, size_t bytes_max) {
  std::array<char, kHeadBytes> buffer;
  std::string body;
  while (true) {
    std::string_view bytes;
    while (read_at_hand(bytes)) body.append(bytes);
    if (ended() || body.size() >= bytes_max || waiter.wait(fd_.get(), POLLIN, deadline) != Wake::ready) return body;
    receive(buffer);
  }
}

bool Generation::read_at_hand(std::string_view& bytes) {
  bytes = {};
  while (step_ == Step::body) {
    // Also asked with nothing unread: an empty body is over at once.
    const auto status = body_.next(unread_, bytes);
    if (status == http1::BodyDecoder::Status::malformed) break_off("the answer's chunks are malformed");
    if (status == http1::BodyDecoder::Status::done) finish();
    if (!bytes.empty()) return true;
    if (unread_.empty()) break;
  }
  return false;
}

// The body is over: the connection serves another request, unless something is odd about it.
void Generation::finish() {
  reusable_ = head_.keeps_alive() && unread_.empty() && unsent_ == 0;
  step_ = Step::ended;
}

Ollama::Ollama(std::vector<OllamaAddress> addresses) : choice_(addresses.size()) {
  for (OllamaAddress& address : addresses) upstreams_.push_back({std::move(address), {}, {}, {}});
}

std::unique_ptr<Generation> Ollama::start(std::string_view method, std::string_view path, std::string body) {
  return std::unique_ptr<Generation>(new Generation(*this, method, path, std::move(body), std::nullopt));
}

std::unique_ptr<Generation> Ollama::start_at(size_t address, std::string_view method, std::string_view path, std::string body) {
  return std::unique_ptr<Generation>(new Generation(*this, method, path, std::move(body), address));
}

std::vector<OllamaState> Ollama::addresses() {
  std::vector<OllamaState> states;
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < upstreams_.size(); ++i) states.push_back({upstreams_[i].address.url, choice_.running(i), choice_.rests(i)});
  return states;
}

std::optional<size_t> Ollama::choose(const Upstreams::Tried& tried, bool resting_too) {
  const std::lock_guard lock(mutex_);
  return choice_.choose(tried, resting_too, Clock::now());
}

void Ollama::leave(size_t upstream, UniqueFd reusable) {
  const std::lock_guard lock(mutex_);
  choice_.leave(upstream);
  if (reusable) upstreams_[upstream].idle.push_back({std::move(reusable), Clock::now()});
}

void Ollama::fail(size_t upstream, const std::string& reason, bool quietly) {
  {
    const std::lock_guard lock(mutex_);
    if (!choice_.fail(upstream, Clock::now())) return;
  }
  if (!quietly) LogLine(LogLevel::warning, "ollama_away").add("url", upstreams_[upstream].address.url).add("reason", reason);
}

void Ollama::answer(size_t upstream) {
  {
    const std::lock_guard lock(mutex_);
    if (!choice_.answer(upstream)) return;
  }
  LogLine(LogLevel::info, "ollama_back").add("url", upstreams_[upstream].address.url);
}

UniqueFd Ollama::take_idle(size_t upstream) {
  const std::lock_guard lock(mutex_);
  std::vector<Idle>& idle = upstreams_[upstream].idle;
  while (!idle.empty()) {
    UniqueFd fd = std::move(idle.back().fd);
    idle.pop_back();
    // An idle connection has nothing to say: if it has, that is its end. One made ahead may not be there yet.
    pollfd watched{fd.get(), POLLIN | POLLOUT, 0};
    if (::poll(&watched, 1, 0) == 1 && watched.revents == POLLOUT) return fd;
  }
  return UniqueFd();
}

void Ollama::connect_ahead() {
  for (size_t i = 0; i < upstreams_.size(); ++i) {
    std::vector<sockaddr_storage> ways;
    {
      const std::lock_guard lock(mutex_);
      const Upstream& upstream = upstreams_[i];
      if (upstream.idle.size() >= kConnectedAhead || choice_.rests(i) || Clock::now() - upstream.resolved_at >= kResolvedFor) continue;
      ways = upstream.resolved;
    }
    for (const sockaddr_storage& address : ways) {
      UniqueFd fd = new_socket(address);
      if (!fd || (!connect_to(fd, address) && errno != EINPROGRESS)) continue;
      // On this machine a refusal is there at once, as of a name that also stands for an address which nobody listens at.
      pollfd watched{fd.get(), POLLOUT, 0};
      if (::poll(&watched, 1, 0) == 1 && watched.revents != POLLOUT) continue;
      const std::lock_guard lock(mutex_);
      upstreams_[i].idle.push_back({std::move(fd), Clock::now()});
      break;
    }
  }
}

void Ollama::close_idle() {
  std::vector<Idle> closing;  // closed after the lock is gone
  const std::lock_guard lock(mutex_);
  const auto limit = Clock::now() - kIdleMax;
  for (Upstream& upstream : upstreams_) {
    auto first_kept = upstream.idle.begin();
    while (first_kept != upstream.idle.end() && first_kept->since < limit) closing.push_back(std::move(*first_kept++));
    upstream.idle.erase(upstream.idle.begin(), first_kept);
  }
}

Ollama::Resolved Ollama::resolve(size_t upstream) {
  Upstream& asked = upstreams_[upstream];
  {
    const std::lock_guard lock(mutex_);
    if (!asked.resolved.empty() && Clock::now() - asked.resolved_at < kResolvedFor) return {asked.resolved, ""};
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(asked.address.host.c_str(), asked.address.port.c_str(), &hints, &found); error != 0) {
    return {{}, ::gai_strerror(error)};
  }
  Resolved resolved;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_family != AF_INET && entry->ai_family != AF_INET6) continue;
    sockaddr_storage address{};
    std::memcpy(&address, entry->ai_addr, entry->ai_addrlen);
    resolved.list.push_back(address);
  }
  ::freeaddrinfo(found);
  if (resolved.list.empty()) resolved.error = "the name has no address";
  const std::lock_guard lock(mutex_);
  asked.resolved = resolved.list;
  asked.resolved_at = Clock::now();
  return resolved;
}
