#include "server.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>

#include "listener.hpp"

namespace {

// httplib's default of 5 makes the kernel drop a burst, and clients try again a second later.
constexpr int kBacklog = 4096;
// A client that asks nothing after its handshake is roused after this. Others have long asked by then.
constexpr auto kDozeMax = std::chrono::seconds(1);
// How many requests a connection may have, for the Keep-Alive header: it has no limit of its own.
constexpr int kKeepAliveRequests = 100'000;
// Without the express one. More than processors: a burst of lines is shared with the threads of the other programs
// here, and more of ours at work mean a larger share, and so a shorter way for each line (docs/performance.md).
constexpr size_t kPumpThreads = 8;

void signal(const UniqueFd& event) {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event.get(), &one, sizeof one);
}

Connection::Limits limits_of(const Server::Settings& settings, http1::BodyMemory* body_memory) {
  return {settings.body_bytes_max, body_memory, settings.header_timeout, settings.body_timeout, settings.idle_timeout, settings.write_timeout};
}

}  // namespace

Server::Server(Settings settings, SslContext tls)
    : host_(std::move(settings.host)),
      port_(settings.port),
      has_tls_(tls != nullptr),
      connections_max_(settings.connections_max),
      threads_max_(settings.threads_max),
      processors_(std::max(1u, std::thread::hardware_concurrency())),
      body_memory_(settings.body_memory_max),
      limits_(limits_of(settings, &body_memory_)),
      tls_(std::move(tls)),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      greeting_(::epoll_create1(EPOLL_CLOEXEC)),
      stop_event_(::eventfd(0, EFD_CLOEXEC)),
      pump_(std::make_unique<Pump>(stop_event_.get())) {
  set_post_routing_handler([](const httplib::Request&, httplib::Response& response) {
    Exchange& exchange = Exchange::current();
    exchange.status = response.status;
    response.set_header("X-Request-Id", exchange.id());
    // httplib says that the connection closes (exchange.cpp, process()).
    if (exchange.keeps_connection()) {
      response.headers.erase("Connection");
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(exchange.connection_.limits().idle_timeout).count();
      response.set_header("Keep-Alive", "timeout=" + std::to_string(seconds) + ", max=" + std::to_string(kKeepAliveRequests));
    }
    // httplib says in answers to HEAD that ranges are served, which they are not here, and gives a 204 a
    // length, which it must not have (RFC 9110, 8.6).
    response.headers.erase("Accept-Ranges");
    if (response.status == 204) response.headers.erase("Content-Length");
  });
}

Server::~Server() {
  if (door_.joinable()) stop(milliseconds(0), kEndingMin);
}

std::optional<StartProblem> Server::bind() {
  const std::string port = std::to_string(port_);
  // One socket for both families; without IPv6 on this machine, IPv4 alone.
  auto listener = listen_on(AF_UNSPEC, host_.empty() ? "::" : host_, port, kBacklog);
  if (!listener.ok() && host_.empty() && (listener.error().no_address || listener.error().error == EAFNOSUPPORT)) {
    listener = listen_on(AF_INET, "0.0.0.0", port, kBacklog);
  }
  if (listener.ok()) {
    adopt(std::move(listener.value()));
    return std::nullopt;
  }
  const ListenFailure& failure = listener.error();
  if (failure.no_address) return StartProblem{true, "--host: '" + host_ + "' is not an address: " + failure.reason};
  std::string problem = "Port " + port + " can't be had: " + failure.reason;
  if (failure.error == EADDRINUSE) problem += ". Another server is running there: stop it, or choose another --port.";
  if (failure.error == EACCES) problem += ". Ports under 1024 need root: run it by sudo, or choose a higher --port.";
  return StartProblem{false, std::move(problem)};
}

void Server::adopt(UniqueFd listener) {
  listener_ = std::move(listener);
  // Its clients' sockets inherit it.
  const int on = 1;
  ::setsockopt(listener_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // In TLS the client speaks first: its hello and itself are one event then. One that stays silent comes a second late.
  const int seconds = 1;
  if (has_tls_) ::setsockopt(listener_.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
  // httplib ends a response early when it believes to be stopped, which it sees by its own listener.
  svr_sock_ = listener_.get();
}

void Server::use_real_time() {
  pump_->start_express();
  lender_ = std::make_unique<Lender>(processors_);
}

void Server::use_cpu_latency(UniqueFd device) { cpu_latency_ = std::make_unique<CpuLatency>(std::move(device)); }

std::string Server::url() const { return (has_tls_ ? "https://" : "http://") + local_address(listener_); }

void Server::start() {
  pump_->start(kPumpThreads);
  workers_ = std::make_unique<Workers>(threads_max_, [this](Held connection) { serve(std::move(connection)); });
  give_listener(/*to_greeters=*/has_tls_);
  watch(epoll_, EPOLL_CTL_ADD, door_pulse_.fd(), EPOLLIN, &door_pulse_);
  if (cpu_latency_) watch(epoll_, EPOLL_CTL_ADD, cpu_latency_->timer_fd(), EPOLLIN, &cpu_latency_);
  watch(greeting_, EPOLL_CTL_ADD, greeters_pulse_.fd(), EPOLLIN, &greeters_pulse_);
  // A handshake is all computing, so more threads than processors gain nothing; and what OpenSSL keeps for each thread
  // that has made one, and the stack it has touched, is kept for these only. Half of the processors are left to the
  // answers under way, however many clients come at once.
  const size_t greeters = has_tls_ ? std::max<size_t>(1, processors_ / 2) : 0;
  for (size_t i = 0; i < greeters; ++i) greeters_.emplace_back([this] { keep_greeting(); });
  door_ = std::thread([this] { keep_door(); });
}

Server::Use Server::use() {
  return {connections_, connections_max_, workers_->threads(), workers_->threads_max(), workers_->waiting()};
}

void Server::set_limits(const Settings& settings) {
  connections_max_ = settings.connections_max;
  workers_->set_threads_max(settings.threads_max);
  body_memory_.set_max(settings.body_memory_max);
  limits_.set(limits_of(settings, &body_memory_));
}

void Server::set_tls(SslContext tls) { tls_.set(std::move(tls)); }

std::string_view Server::self_check(Clock::duration patience) {
  const bool pump_beats = pump_->beats(patience);
  const bool greeters_beat = !has_tls_ || greeters_pulse_.beats(patience);
  if (!door_pulse_.beats(patience)) return "door";
  if (!greeters_beat) return "greeters";
  if (!pump_beats) return "pump";
  return answers_itself() ? "" : "routing";
}

bool Server::stop(milliseconds drain, milliseconds ending) {
  draining_ = true;
  door_pulse_.wake();
  std::unique_lock lock(mutex_);
  const bool drained = served_.wait_for(lock, drain, [this] { return !accepting_ && serving_ == 0 && waiting_.empty(); });
  closed_ = true;
  if (!drained) signal(stop_event_);
  lock.unlock();
  door_pulse_.wake();
  greeters_pulse_.wake();
  door_.join();
  for (std::thread& greeter : greeters_) greeter.join();
  lock.lock();
  Connection::Waiting closing;
  closing.swap(waiting_);
  lock.unlock();
  closing.clear();
  lock.lock();
  const bool all_ended = served_.wait_for(lock, ending, [this] { return serving_ == 0; });
  lock.unlock();
  if (all_ended) {
    workers_.reset();
    pump_.reset();
  }
  return all_ended;
}

bool Server::watch(const UniqueFd& epoll, int operation, int fd, std::uint32_t events, const void* who) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = const_cast<void*>(who);
  return ::epoll_ctl(epoll.get(), operation, fd, &event) == 0;
}

// Takes a connection that has had an event. A thread of the epoll that it stood at.
Server::Held Server::take(Connection* connection) {
  const std::lock_guard lock(mutex_);
  Held held = std::move(connection->waiting->second);
  waiting_.erase(held->waiting);
  ++serving_;
  return held;
}

// Without a thread to serve it a connection is closed.
void Server::hand_to_worker(Held connection) {
  connection->greeting = false;
  if (Held refused = workers_->submit(std::move(connection))) leave(std::move(refused));
}

// Leaves a connection at its epoll until its socket has one of `events`. Any thread.
void Server::park(Held connection, std::uint32_t events) {
  Connection* const raw = connection.get();
  if (raw->phase != Connection::Phase::opening) raw->greeting = false;
  const UniqueFd& epoll = raw->greeting ? greeting_ : epoll_;
  const std::lock_guard lock(mutex_);
  if (closed_ || (draining_ && raw->phase == Connection::Phase::idle)) {
    --connections_;
    return;
  }
  if (raw->phase == Connection::Phase::opening) raw->deadline = Deadline::earlier(raw->deadline, Deadline::at_time(last_requests_until_));
  const auto due = raw->dozes() ? std::min(raw->deadline.at(), Clock::now() + kDozeMax) : raw->deadline.at();
  raw->waiting = waiting_.emplace(due, std::move(connection));
  const int operation = raw->watched_by == epoll.get() ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  raw->watched_by = epoll.get();
  const std::uint32_t left = events != 0 ? std::uint32_t{EPOLLRDHUP} : 0;
  if (!watch(epoll, operation, raw->fd(), events | left | EPOLLONESHOT, raw)) {
    waiting_.erase(raw->waiting);
    --connections_;
  }
}
