#include "tests/harness/scripted_ollama.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <charconv>
#include <cstdio>
#include <stdexcept>

namespace harness {
namespace {

// Reads what a request needs, or nothing when the connection ends first.
class RequestReader {
 public:
  RequestReader(int fd, const std::atomic<bool>& stopping) : fd_(fd), stopping_(stopping) {}

  std::optional<OllamaRequest> next() {
    const auto head_end = fill_until([this] { return buffer_.find("\r\n\r\n"); });
    if (!head_end) return std::nullopt;
    OllamaRequest request = parse_head(std::string_view(buffer_).substr(0, *head_end));
    buffer_.erase(0, *head_end + 4);
    if (lower_case(request.header("transfer-encoding")) == "chunked") {
      if (!read_chunks(request.body)) return std::nullopt;
    } else if (!read_bytes(size_from(request.header("content-length"), 10), request.body)) {
      return std::nullopt;
    }
    request.arrived = Clock::now();
    return request;
  }

 private:
  static size_t size_from(std::string_view text, int base) {
    size_t value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value, base);
    return value;
  }

  static OllamaRequest parse_head(std::string_view head) {
    OllamaRequest request;
    const std::string_view first = head.substr(0, head.find("\r\n"));
    const size_t space = first.find(' ');
    request.method = std::string(first.substr(0, space));
    if (space != std::string_view::npos) {
      const std::string_view rest = first.substr(space + 1);
      request.path = std::string(rest.substr(0, rest.find(' ')));
    }
    head.remove_prefix(first.size());
    while (head.size() > 2) {
      head.remove_prefix(2);
      const std::string_view line = head.substr(0, head.find("\r\n"));
      const size_t colon = line.find(':');
      if (colon != std::string_view::npos) {
        request.headers.emplace_back(lower_case(line.substr(0, colon)), std::string(trimmed(line.substr(colon + 1))));
      }
      head.remove_prefix(line.size());
    }
    return request;
  }

  template <typename Find>
  std::optional<size_t> fill_until(Find find) {
    for (;;) {
      const size_t at = find();
      if (at != std::string::npos) return at;
      if (!fill()) return std::nullopt;
    }
  }

  bool read_bytes(size_t count, std::string& into) {
    while (buffer_.size() < count) {
      if (!fill()) return false;
    }
    into.append(buffer_, 0, count);
    buffer_.erase(0, count);
    return true;
  }

  bool read_chunks(std::string& into) {
    for (;;) {
      const auto line_end = fill_until([this] { return buffer_.find("\r\n"); });
      if (!line_end) return false;
      const size_t size = size_from(std::string_view(buffer_).substr(0, *line_end), 16);
      buffer_.erase(0, *line_end + 2);
      std::string chunk_end;
      if (!read_bytes(size, into) || !read_bytes(2, chunk_end)) return false;
      if (size == 0) return true;
    }
  }

  bool fill() {
    while (!wait_readable(fd_, 20)) {
      if (stopping_) return false;
    }
    char bytes[16384];
    const ssize_t got = ::recv(fd_, bytes, sizeof bytes, 0);
    if (got <= 0) return false;
    buffer_.append(bytes, static_cast<size_t>(got));
    return true;
  }

  int fd_;
  const std::atomic<bool>& stopping_;
  std::string buffer_;
};

bool is_health_check(const OllamaRequest& request) {
  return request.path == "/api/version" || request.path == "/api/tags" || request.path == "/";
}

void answer_health(Conn& conn) {
  const std::string& path = conn.request().path;
  if (path == "/api/version") return conn.respond(200, R"({"version":"0.6.2"})");
  if (path == "/") return conn.respond(200, "Ollama is running", "text/plain; charset=utf-8");
  conn.respond(200, R"({"models":[{"name":"stand-in:latest","model":"stand-in:latest","size":1}]})");
}

}  // namespace

std::string OllamaRequest::header(std::string_view lower_name) const {
  for (const auto& [name, value] : headers) {
    if (name == lower_name) return value;
  }
  return {};
}

std::optional<Clock::time_point> Exchange::client_left() const {
  const std::lock_guard lock(mutex_);
  return client_left_;
}

void Exchange::note_client_left() {
  const std::lock_guard lock(mutex_);
  if (!client_left_) client_left_ = Clock::now();
}

void Conn::raw(std::string_view bytes) {
  // Sent in slices, so that a client that stops reading is seen to leave and a test can end.
  while (!bytes.empty()) {
    wait_for([this] { return wait_writable(fd_.get(), 0); });
    const std::string_view slice = bytes.substr(0, 8192);
    if (!send_all(fd_.get(), slice)) {
      exchange_->note_client_left();
      throw ScriptOver{};
    }
    bytes.remove_prefix(slice.size());
  }
}

void Conn::head(int status, const Headers& headers) {
  std::string text = "HTTP/1.1 " + std::to_string(status) + (status == 200 ? " OK" : " Status") + "\r\n";
  for (const auto& [name, value] : headers) text += name + ": " + value + "\r\n";
  raw(text + "\r\n");
}

void Conn::stream_head(int status, const std::string& content_type) {
  head(status, {{"Content-Type", content_type}, {"Transfer-Encoding", "chunked"}});
}

void Conn::chunk(std::string_view bytes) {
  char size[32];
  std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
  raw(std::string(size).append(bytes).append("\r\n"));
}

void Conn::line(std::string_view text) { chunk(std::string(text) + "\n"); }

void Conn::end_chunks() { raw("0\r\n\r\n"); }

void Conn::respond(int status, std::string_view body, const std::string& content_type) {
  std::string text = "HTTP/1.1 " + std::to_string(status) + (status == 200 ? " OK" : " Status") + "\r\n";
  text += "Content-Type: " + content_type + "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n";
  if (request().method != "HEAD") text.append(body);
  raw(text);
}

void Conn::fin() { fd_.close(); }
void Conn::rst() { fd_.close_with_rst(); }

void Conn::wait_for(const std::function<bool()>& condition) {
  if (!fd_.is_open()) throw std::logic_error("the script went on after it had closed the connection");
  for (;;) {
    if (peer_left(fd_.get())) exchange_->note_client_left();
    if (stopping_ || exchange_->client_left()) throw ScriptOver{};
    if (condition()) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

void Conn::wait(const Gate& gate) {
  wait_for([&] { return gate.is_open(); });
}

void Conn::pause(int ms) {
  const Deadline deadline(ms);
  wait_for([&] { return deadline.passed(); });
}

void Conn::wait_until_client_leaves() {
  wait_for([] { return false; });
}

ScriptedOllama::ScriptedOllama(Fd bound) : listener_(std::move(bound)) {
  start_listening(listener_);
  answer_with([](Conn& conn) { conn.respond(500, R"({"error":"the test set no script"})"); });
  acceptor_ = std::thread([this] { accept_connections(); });
}

ScriptedOllama::~ScriptedOllama() {
  stopping_ = true;
  acceptor_.join();
  for (Worker& worker : workers_) worker.thread.join();
}

void ScriptedOllama::answer_with(Script script) {
  const std::lock_guard lock(mutex_);
  script_ = std::move(script);
}

void ScriptedOllama::answer_health_with(Script script) {
  const std::lock_guard lock(mutex_);
  health_script_ = std::move(script);
}

std::vector<std::shared_ptr<Exchange>> ScriptedOllama::exchanges() const { return exchanges_with(""); }

std::vector<std::shared_ptr<Exchange>> ScriptedOllama::exchanges_with(std::string_view text) const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Exchange>> found;
  for (const auto& exchange : exchanges_) {
    if (exchange->request().body.find(text) != std::string::npos) found.push_back(exchange);
  }
  return found;
}

std::shared_ptr<Exchange> ScriptedOllama::wait_for_request(std::string_view text, size_t n) const {
  std::vector<std::shared_ptr<Exchange>> found;
  if (!eventually([&] { return (found = exchanges_with(text)).size() >= n; })) {
    throw std::runtime_error("Ollama got " + std::to_string(found.size()) + " requests with \"" +
                             std::string(text) + "\", expected " + std::to_string(n));
  }
  return found[n - 1];
}

void ScriptedOllama::accept_connections() {
  while (!stopping_) {
    workers_.remove_if([](Worker& worker) {
      if (!worker.ended) return false;
      worker.thread.join();
      return true;
    });
    if (!wait_readable(listener_.get(), 20)) continue;
    Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd.is_open()) continue;
    const int on = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Worker& worker = workers_.emplace_back();
    worker.fd = std::move(fd);
    worker.thread = std::thread([this, &worker, number = ++connections_] {
      serve(worker, number);
      worker.fd.close();
      worker.ended = true;
    });
  }
}

void ScriptedOllama::serve(Worker& worker, int number) {
  RequestReader reader(worker.fd.get(), stopping_);
  std::shared_ptr<Exchange> last;
  while (worker.fd.is_open()) {
    std::optional<OllamaRequest> request = reader.next();
    if (!request) {
      if (last && !stopping_) last->note_client_left();
      return;
    }
    request->connection = number;
    last = std::make_shared<Exchange>(std::move(*request));
    if (!is_health_check(last->request())) {
      const std::lock_guard lock(mutex_);
      exchanges_.push_back(last);
    }
    run_script(worker.fd, last);
    last->script_ended_ = true;
    if (last->client_left()) return;
  }
}

void ScriptedOllama::run_script(Fd& fd, const std::shared_ptr<Exchange>& exchange) {
  Script script;
  {
    const std::lock_guard lock(mutex_);
    script = is_health_check(exchange->request()) ? health_script_ : script_;
  }
  if (!script) script = answer_health;
  Conn conn(fd, exchange, stopping_);
  try {
    script(conn);
  } catch (const Conn::ScriptOver&) {
    // The client left or the server stops: both are what the test is about, or its end.
  } catch (const std::exception& error) {
    std::fprintf(stderr, "a script of the scripted Ollama failed: %s\n", error.what());
  }
}

}  // namespace harness
