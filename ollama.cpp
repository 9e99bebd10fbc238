#include "ollama.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace {

// One recv of the head, with what has come of the body behind it.
constexpr size_t kHeadBytes = 16 * 1024;
// Ollama is near; one that does not take a connection in this time is as good as away.
constexpr auto kConnectMax = std::chrono::seconds(5);
// Kept connections save a connect a turn; idle for longer they are closed, so that a burst leaves nothing.
constexpr auto kIdleMax = std::chrono::seconds(5);
// A name's addresses are asked for again after this time.
constexpr auto kResolvedFor = std::chrono::seconds(30);

socklen_t length_of(const sockaddr_storage& address) {
  return address.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
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

std::optional<OllamaAddress> OllamaAddress::parse(std::string_view url) {
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

  OllamaAddress address;
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

Generation::Generation(Ollama& ollama, std::string request) : ollama_(ollama), request_(std::move(request)) {}

Generation::~Generation() { abandon(); }

void Generation::abandon() {
  if (reusable_) ollama_.keep(std::move(fd_));
  reusable_ = false;
  fd_.reset();
  step_ = Step::ended;
  unread_ = {};
}

Generation::Event Generation::fail(Event event, std::string detail) {
  detail_ = std::move(detail);
  abandon();
  return event;
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

// Takes an idle connection, or begins to connect to the next of Ollama's addresses.
Generation::Event Generation::connect_next() {
  if (!connect_deadline_) {
    if (UniqueFd idle = ollama_.take_idle()) {
      fd_ = std::move(idle);
      reused_ = true;
      step_ = Step::send;
      return Event::head;
    }
    Ollama::Addresses resolved = ollama_.resolve();
    if (resolved.list.empty()) return fail(Event::unreachable, resolved.error);
    addresses_ = std::move(resolved.list);
    connect_deadline_ = Deadline::after(kConnectMax);
  }
  if (addresses_.empty()) return fail(Event::unreachable, detail_);
  const sockaddr_storage address = addresses_.front();
  addresses_.erase(addresses_.begin());
  fd_.reset(::socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd_) return fail(Event::unreachable, errno_text(errno));
  const int on = 1;
  ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), length_of(address)) == 0) {
    step_ = Step::send;
  } else if (errno == EINPROGRESS) {
    step_ = Step::connecting;
  } else {
    detail_ = errno_text(errno);  // and on to the next address
  }
  return Event::head;
}

Generation::Event Generation::finish_connecting(Waiter& waiter, Deadline deadline) {
  const Wake wake = waiter.wait(fd_.get(), POLLOUT, Deadline::earlier(deadline, *connect_deadline_));
  if (wake == Wake::timed_out && !connect_deadline_->passed()) return Event::timed_out;
  if (wake == Wake::timed_out) return fail(Event::unreachable, "no connection in time");
  if (wake != Wake::ready) return event_of(wake);
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
  if (error != 0) detail_ = errno_text(error);
  step_ = error == 0 ? Step::send : Step::connect;
  return Event::head;
}

Generation::Event Generation::send_request(Waiter& waiter, Deadline deadline) {
  while (sent_ < request_.size()) {
    const ssize_t sent = ::send(fd_.get(), request_.data() + sent_, request_.size() - sent_, MSG_NOSIGNAL);
    if (sent > 0) {
      sent_ += static_cast<size_t>(sent);
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
  body_ = head_.body();
  unread_ = head_.rest();
  all_sent_ = sent_ == request_.size();
  request_ = std::string();  // a long history need not stay in memory while the answer streams
  step_ = Step::body;
  return Event::head;
}

// A kept connection may turn out to have been closed by Ollama: once more, on a new one.
bool Generation::try_again() {
  if (!std::exchange(reused_, false)) return false;
  fd_.reset();
  sent_ = 0;
  step_ = Step::connect;
  // Another kept one may be as dead: from here on only new connections.
  connect_deadline_ = Deadline::after(kConnectMax);
  Ollama::Addresses resolved = ollama_.resolve();
  addresses_ = std::move(resolved.list);
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
  detail_ = std::move(detail);
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
  reusable_ = head_.keeps_alive() && unread_.empty() && all_sent_;
  step_ = Step::ended;
}

std::unique_ptr<Generation> Ollama::start(std::string_view method, std::string_view path, std::string_view body) {
  std::string request;
  request.reserve(body.size() + 256);
  request.append(method).append(" ").append(address_.api_path).append(path).append(" HTTP/1.1\r\nHost: ").append(address_.host_header);
  request.append("\r\nUser-Agent: chatterd\r\n");
  if (method == "POST") {
    request.append("Content-Type: application/json\r\nContent-Length: ").append(std::to_string(body.size())).append("\r\n");
  }
  request.append("\r\n").append(body);
  return std::unique_ptr<Generation>(new Generation(*this, std::move(request)));
}

UniqueFd Ollama::take_idle() {
  const std::lock_guard lock(mutex_);
  while (!idle_.empty()) {
    UniqueFd fd = std::move(idle_.back().fd);
    idle_.pop_back();
    // An idle connection has nothing to say: if it has, that is its end.
    pollfd watched{fd.get(), POLLIN, 0};
    if (::poll(&watched, 1, 0) == 0) return fd;
  }
  return UniqueFd();
}

void Ollama::keep(UniqueFd fd) {
  const std::lock_guard lock(mutex_);
  idle_.push_back({std::move(fd), Clock::now()});
}

void Ollama::close_idle() {
  std::vector<Idle> closing;  // closed after the lock is gone
  const std::lock_guard lock(mutex_);
  const auto limit = Clock::now() - kIdleMax;
  auto first_kept = idle_.begin();
  while (first_kept != idle_.end() && first_kept->since < limit) closing.push_back(std::move(*first_kept++));
  idle_.erase(idle_.begin(), first_kept);
}

Ollama::Addresses Ollama::resolve() {
  {
    const std::lock_guard lock(mutex_);
    if (!resolved_.empty() && Clock::now() - resolved_at_ < kResolvedFor) return {resolved_, ""};
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(address_.host.c_str(), address_.port.c_str(), &hints, &found); error != 0) {
    return {{}, ::gai_strerror(error)};
  }
  Addresses addresses;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_family != AF_INET && entry->ai_family != AF_INET6) continue;
    sockaddr_storage address{};
    std::memcpy(&address, entry->ai_addr, entry->ai_addrlen);
    addresses.list.push_back(address);
  }
  ::freeaddrinfo(found);
  if (addresses.list.empty()) addresses.error = "the name has no address";
  const std::lock_guard lock(mutex_);
  resolved_ = addresses.list;
  resolved_at_ = Clock::now();
  return addresses;
}
