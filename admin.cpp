#include "admin.hpp"

#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>

#include "connection.hpp"
#include "listener.hpp"
#include "log.hpp"
#include "metrics.hpp"
#include "text.hpp"

namespace {

// For a request to come, and again for its answer to be read: a probe gives up as soon, and a client that
// says nothing keeps one of the two threads for so long.
constexpr auto kClientMax = milliseconds(1000);
// For database and Ollama together. Below the second after which the usual probes give up.
constexpr auto kReadyMax = milliseconds(700);
constexpr int kBacklog = 16;
constexpr size_t kReadBytes = 2048;

constexpr const char* kAddressWanted = "' is not HOST:PORT, such as 127.0.0.1:9091 or [::1]:9091";

struct HostPort {
  std::string host, port;
};

std::optional<HostPort> parse_address(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return std::nullopt;
  std::string host = address.substr(0, colon);
  const std::string port = address.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find_first_of(":[]") != std::string::npos) {
    return std::nullopt;
  }
  if (host.empty() || port.empty() || port.size() > 5 || port.find_first_not_of("0123456789") != std::string::npos || std::stoi(port) > 65535) return std::nullopt;
  return HostPort{host, port};
}

std::string error_json(std::string_view sentence) { return "{\"error\":\"" + std::string(sentence) + "\"}"; }

void append_finding(std::string& json, std::string_view name, const Probe::Finding& finding) {
  char latency[32];
  std::snprintf(latency, sizeof latency, "%.1f", finding.ms);
  json.append("\"").append(name).append("\":{\"usable\":").append(finding.usable ? "true" : "false").append(",\"latency_ms\":").append(latency);
  if (!finding.usable) append_json_string(json += ",\"problem\":", finding.problem);
  json += '}';
}

void append_gauge(std::string& out, std::string_view name, std::string_view help, size_t value) {
  metrics::append_head(out, name, metrics::Type::gauge, help);
  metrics::append_sample(out, name, static_cast<double>(value));
}

// Reads one request. Nothing: the client left or was too slow.
bool read_request(Connection& connection, Deadline deadline) {
  using State = http1::RequestReader::State;
  std::array<char, kReadBytes> buffer;
  while (connection.reader.state() != State::complete && connection.reader.state() != State::refused) {
    pollfd watched{connection.fd(), POLLIN, 0};
    if (::poll(&watched, 1, deadline.left_ms()) <= 0) return false;
    std::string_view bytes;
    const auto outcome = connection.read(buffer, bytes);
    if (outcome == Connection::Io::closed) return false;
    connection.reader.feed(bytes);
  }
  return true;
}

}  // namespace

struct Admin::Answer {
  int status;
  std::string content_type;
  std::string body;
};

std::optional<StartProblem> Admin::bind(const std::string& address) {
  const auto parsed = parse_address(address);
  if (!parsed) return StartProblem{true, "--admin: '" + address + kAddressWanted};
  auto listener = listen_on(AF_UNSPEC, parsed->host, parsed->port, kBacklog);
  stop_event_.reset(::eventfd(0, EFD_CLOEXEC));
  if (listener.ok() && stop_event_) {
    listener_ = std::move(listener.value());
    return std::nullopt;
  }
  const ListenFailure failure = listener.ok() ? ListenFailure{false, errno, errno_text(errno)} : listener.error();
  if (failure.no_address) return StartProblem{true, "--admin: '" + parsed->host + "' is not an address: " + failure.reason};
  std::string problem = "--admin: " + address + " can't be had: " + failure.reason;
  if (failure.error == EADDRINUSE) problem += ". Another server is running there: stop it, or choose another port.";
  return StartProblem{false, std::move(problem)};
}

void Admin::start() {
  if (!listener_) return;
  LogLine(LogLevel::info, "admin_listening").add("url", "http://" + local_address(listener_));
  for (std::thread& thread : threads_) thread = std::thread([this] { run(); });
}

void Admin::stop() {
  if (!threads_[0].joinable()) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(stop_event_.get(), &one, sizeof one);
  for (std::thread& thread : threads_) thread.join();
  listener_.reset();
}

// Each of the threads.
void Admin::run() {
  pollfd watched[2] = {{listener_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}};
  while (::poll(watched, 2, -1) >= 0 || errno == EINTR) {
    if (watched[1].revents != 0) return;
    UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket) {
      serve(std::move(socket));
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      // The client still waits, and poll() would say so again at once.
      ::poll(watched + 1, 1, static_cast<int>(kClientMax.count()));
    }
  }
}

void Admin::serve(UniqueFd socket) {
  // A GET has no body. The times are for who keeps a connection; this one ends with its answer.
  static const auto kLimits = std::make_shared<const Connection::Limits>(Connection::Limits{0, nullptr, kClientMax, kClientMax, kClientMax, kClientMax});
  Connection connection(std::move(socket), nullptr, "", kLimits);
  if (!read_request(connection, Deadline::after(kClientMax))) return;
  const auto began = Clock::now();
  const http1::RequestReader& reader = connection.reader;
  Answer answer{405, "application/json", error_json("This path does not take this method.")};
  if (reader.state() == http1::RequestReader::State::refused) {
    answer = {reader.refusal().status, "application/json", error_json(reader.refusal().sentence)};
  } else if (reader.method() == "GET" || reader.method() == "HEAD") {
    answer = this->answer(reader.path());
  }
  std::string bytes = "HTTP/1.1 " + std::to_string(answer.status) + (answer.status == 200 ? " OK" : " Error") + "\r\nContent-Type: " + answer.content_type +
                      "\r\nContent-Length: " + std::to_string(answer.body.size()) + "\r\nCache-Control: no-store\r\nConnection: close\r\n";
  if (answer.status == 405) bytes += "Allow: GET, HEAD\r\n";
  bytes += "\r\n";
  if (reader.method() != "HEAD") bytes += answer.body;
  connection.write(bytes, Deadline::after(kClientMax), false);
  connection.finish_writing();
  LogLine(LogLevel::debug, "admin_request").add("status", answer.status).add("path", reader.path())
      .add("ms", std::chrono::duration<double, std::milli>(Clock::now() - began).count());
}

Admin::Answer Admin::answer(const std::string& path) {
  const std::string plain = path.size() > 1 && path.back() == '/' ? path.substr(0, path.size() - 1) : path;
  if (plain == "/healthz") return {200, "text/plain; charset=utf-8", "ok"};
  if (plain == "/readyz") return readiness();
  if (plain == "/metrics") return {200, "text/plain; version=0.0.4; charset=utf-8", metrics_text()};
  return {404, "application/json", error_json("There is nothing at this path.")};
}

Admin::Answer Admin::readiness() {
  const Deadline deadline = Deadline::after(kReadyMax);
  health_.database.ask();  // both at the same time
  const auto ollama = health_.ollama.find(deadline);
  const auto database = health_.database.find(deadline);
  const bool ready = database.usable && ollama.usable;
  std::string json = ready ? "{\"ready\":true," : "{\"ready\":false,";
  append_finding(json, "database", database);
  append_finding(json += ',', "ollama", ollama);
  return {ready ? 200 : 503, "application/json", json + "}"};
}

std::string Admin::metrics_text() {
  // A service that nobody used for an hour may be away: what comes of the looks is in the next answer.
  health_.database.ask();
  health_.ollama.ask();
  std::string out;
  metrics::append_all(out, version_);
  const Server::Use use = server_.use();
  append_gauge(out, "chatterd_connections_open", "Connections of clients, idle ones included.", use.connections);
  append_gauge(out, "chatterd_connections_max", "The limit of --max-connections.", use.connections_max);
  append_gauge(out, "chatterd_worker_threads", "Threads that serve requests now.", use.threads);
  append_gauge(out, "chatterd_worker_threads_max", "The limit of --threads.", use.threads_max);
  append_gauge(out, "chatterd_requests_waiting", "Requests that wait for a thread.", use.waiting);
  append_gauge(out, "chatterd_streams_active", "Answers being streamed now.", services_.slots.taken());
  append_gauge(out, "chatterd_streams_max", "The limit of --max-streams.", services_.slots.most());
  const Database::PoolUse pool = services_.database.pool_use();
  const std::string_view connections = "chatterd_database_connections";
  metrics::append_head(out, connections, metrics::Type::gauge, "Connections to the database.");
  metrics::append_sample(out, connections, "state", "in_use", static_cast<double>(pool.in_use));
  metrics::append_sample(out, connections, "state", "idle", static_cast<double>(pool.idle));
  append_gauge(out, "chatterd_database_connections_max", "The limit of --db-pool.", pool.most);
  append_gauge(out, "chatterd_database_waiting", "Calls that wait for a connection to the database.", pool.waiting);
  const auto ollamas = services_.ollama.addresses();
  const std::string_view running = "chatterd_ollama_answers_active";
  metrics::append_head(out, running, metrics::Type::gauge, "Answers under way, by the address of --ollama.");
  for (const OllamaState& state : ollamas) metrics::append_sample(out, running, "url", state.url, static_cast<double>(state.running));
  const std::string_view resting = "chatterd_ollama_resting";
  metrics::append_head(out, resting, metrics::Type::gauge, "1: this address of --ollama has failed and not answered since.");
  for (const OllamaState& state : ollamas) metrics::append_sample(out, resting, "url", state.url, state.resting ? 1 : 0);
  append_gauge(out, "chatterd_replies_waiting", "Replies in the state folder that wait for the database.", services_.spool.waiting());
  return out;
}
