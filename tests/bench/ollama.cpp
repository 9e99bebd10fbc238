// bench_ollama: answers in Ollama's place when chatterd is measured, by Ollama's documented API, and takes
// as little as it can of the machine that is measured: one thread with an epoll and a list of timers.
//
// The model's name says what it does (plan.hpp). Each line goes out by a write of its own and holds, besides
// what Ollama's lines hold, "sent": the time of that write in ns of the machine's monotonic clock. The last
// one's prompt_eval_count is the number of messages that came. It always streams.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "http1.hpp"
#include "tests/bench/plan.hpp"
#include "tests/harness/net.hpp"

namespace {

using bench::Clock;
using harness::Fd;

constexpr size_t kBodyBytesMax = size_t{1} << 30;
constexpr int kEventsMax = 256;

struct Client;
using Timers = std::multimap<Clock::time_point, Client*>;

struct Client {
  explicit Client(Fd accepted) : socket(std::move(accepted)) {}
  Fd socket;
  http1::RequestReader reader{kBodyBytesMax};
  std::string unsent;  // what the socket did not take; while there is some, nothing new is written
  // The answer under way:
  bool answering = false;
  bool waits = false;      // for its timer
  Timers::iterator timer;  // valid while it waits
  bench::Plan plan;
  bool chat = true;  // /api/chat, not /api/generate
  std::string model;
  size_t messages = 0;
  long tokens = 0;  // written so far
  Clock::time_point began;
};

// The present time by RFC 3339 with nanoseconds, as Ollama writes it.
void append_timestamp(std::string& out) {
  static time_t second = 0;
  static char text[32];
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  if (now.tv_sec != second) {
    tm utc{};
    gmtime_r(&now.tv_sec, &utc);
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S.", &utc);
    second = now.tv_sec;
  }
  std::array<char, 16> fraction{};
  std::snprintf(fraction.data(), fraction.size(), "%09ldZ", now.tv_nsec);
  out.append(text).append(fraction.data());
}

// The string of a request's top level, as it stands there. Within another string its quotes would have
// backslashes, so the name in quotes and a colon are found nowhere else.
std::string_view member_text(std::string_view body, std::string_view name) {
  const size_t at = body.find(name);
  if (at == std::string_view::npos) return {};
  const size_t begin = body.find_first_not_of(" \t", at + name.size());
  if (begin == std::string_view::npos || body[begin] != '"') return {};
  return body.substr(begin + 1, body.find('"', begin + 1) - begin - 1);
}

size_t count_of(std::string_view text, std::string_view part) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string_view::npos; at += part.size()) ++count;
  return count;
}

// The line with this number; the one after the last token ends the answer.
void append_line(std::string& out, const Client& client) {
  const bool done = client.tokens == client.plan.tokens;
  const std::string count = std::to_string(client.tokens);
  out.append("{\"model\":\"").append(client.model).append("\",\"created_at\":\"");
  append_timestamp(out);
  out += client.chat ? "\",\"message\":{\"role\":\"assistant\",\"content\":\"" : "\",\"response\":\"";
  if (!done) out.append(" tok").append(count).append(client.plan.pad_bytes, 'x');
  out += client.chat ? "\"},\"done\":" : "\",\"done\":";
  if (done) {
    const std::string took = std::to_string((Clock::now() - client.began).count());
    out.append("true,\"done_reason\":\"stop\",\"total_duration\":").append(took).append(",\"load_duration\":0");
    out.append(",\"prompt_eval_count\":").append(std::to_string(client.messages)).append(",\"prompt_eval_duration\":0");
    out.append(",\"eval_count\":").append(count).append(",\"eval_duration\":").append(took);
  } else {
    out += "false";
  }
  out.append(",\"sent\":").append(std::to_string(bench::ns_of(Clock::now()))).append("}\n");
}

class Server {
 public:
  explicit Server(Fd listener) : listener_(std::move(listener)), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    ::fcntl(listener_.get(), F_SETFL, O_NONBLOCK);
    watch(listener_.get(), EPOLLIN, nullptr);
  }

  [[noreturn]] void run() {
    std::array<epoll_event, kEventsMax> events;
    while (true) {
      const auto now = Clock::now();
      // A line that is due at once comes after those of others that are due already: they take turns.
      while (!timers_.empty() && timers_.begin()->first <= now) write_line(*timers_.begin()->second);
      const int count = wait(events);
      for (int i = 0; i < count; ++i) {
        auto* const client = static_cast<Client*>(events[static_cast<size_t>(i)].data.ptr);
        if (client == nullptr) {
          accept_clients();
        } else if (!go_on(*client)) {
          forget(*client);
        }
      }
    }
  }

 private:
  void watch(int fd, std::uint32_t what, Client* client) {
    epoll_event event{};
    event.events = what;
    event.data.ptr = client;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) throw std::runtime_error("epoll_ctl");
  }

  // epoll_wait's milliseconds would bunch the lines of different answers together.
  int wait(std::array<epoll_event, kEventsMax>& events) {
    timespec left{};
    if (!timers_.empty()) {
      const auto ns = std::max(0LL, bench::ns_of(timers_.begin()->first) - bench::ns_of(Clock::now()));
      left = {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
    }
    return ::epoll_pwait2(epoll_.get(), events.data(), kEventsMax, timers_.empty() ? nullptr : &left, nullptr);
  }

  void accept_clients() {
    while (true) {
      Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!socket.is_open() && errno == EAGAIN) return;
      if (!socket.is_open() && (errno == ECONNABORTED || errno == EINTR)) continue;
      if (!socket.is_open()) throw std::runtime_error(std::string("accept: ") + std::strerror(errno));
      const int on = 1;
      ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      auto client = std::make_unique<Client>(std::move(socket));
      watch(client->socket.get(), EPOLLIN | EPOLLOUT | EPOLLET, client.get());
      clients_[client.get()] = std::move(client);
    }
  }

  void forget(Client& client) {
    if (client.waits) timers_.erase(client.timer);
    clients_.erase(&client);
  }

  // Reads and writes what the socket has and takes. False: the client has gone, or makes no sense.
  bool go_on(Client& client) {
    static std::array<char, 64 * 1024> buffer;
    while (true) {
      const ssize_t count = ::recv(client.socket.get(), buffer.data(), buffer.size(), 0);
      if (count < 0 && errno == EAGAIN) break;
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0 || client.reader.feed({buffer.data(), static_cast<size_t>(count)}) == http1::RequestReader::State::refused) return false;
    }
    const bool was_full = !client.unsent.empty();
    if (!flush(client)) return false;
    if (was_full && client.unsent.empty() && client.answering && !client.waits) set_timer(client, Clock::now());
    return client.answering || client.reader.state() != http1::RequestReader::State::complete || answer(client);
  }

  bool answer(Client& client) {
    using State = http1::RequestReader::State;
    const std::string path = client.reader.path();
    if (path == "/api/version") return reply(client, "200 OK", R"({"version":"0.0.0-bench"})");
    if (path == "/api/tags") return reply(client, "200 OK", R"({"models":[]})");
    client.chat = path == "/api/chat";
    if (!client.chat && path != "/api/generate") return reply(client, "404 Not Found", R"({"error":"no such path"})");
    const std::string& body = client.reader.body();
    client.model = member_text(body, "\"model\":");
    const auto plan = bench::parse_plan(client.model);
    if (client.model.empty() || !plan) return reply(client, "404 Not Found", "{\"error\":\"model '" + client.model + "' not found\"}");
    client.plan = *plan;
    client.messages = client.chat ? count_of(body, "\"role\":") : 1;
    client.tokens = 0;
    client.began = Clock::now();
    client.answering = true;
    client.reader.next();
    set_timer(client, client.began + client.plan.first);
    return client.reader.state() != State::refused;
  }

  bool reply(Client& client, const char* status, const std::string& body) {
    client.unsent += "HTTP/1.1 " + std::string(status) + "\r\nContent-Type: application/json\r\nContent-Length: " +
                     std::to_string(body.size()) + "\r\n\r\n" + body;
    return flush(client) && next_request(client);
  }

  bool next_request(Client& client) {
    using State = http1::RequestReader::State;
    const State state = client.reader.next();
    return state == State::complete ? answer(client) : state != State::refused;
  }

  void set_timer(Client& client, Clock::time_point at) {
    client.timer = timers_.emplace(at, &client);
    client.waits = true;
  }

  // Called when its timer is due.
  void write_line(Client& client) {
    const auto due = client.timer->first;
    timers_.erase(client.timer);
    client.waits = false;
    // The headers go out with the first line: Ollama sends none before.
    if (client.tokens == 0) {
      client.unsent += "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
    }
    static std::string line;
    line.clear();
    append_line(line, client);
    std::array<char, 20> size{};
    client.unsent.append(size.data(), std::to_chars(size.data(), size.data() + size.size(), line.size(), 16).ptr);
    client.unsent.append("\r\n").append(line).append("\r\n");
    const bool last = client.tokens == client.plan.tokens;
    if (!flush(client) || (last && !finish(client))) return forget(client);
    if (last) return;
    ++client.tokens;
    // Kept to the plan, unless the client reads too slowly: what it missed does not come in a burst then.
    if (client.unsent.empty()) set_timer(client, std::max(due + client.plan.between, Clock::now()));
  }

  // The last chunk is a write of its own, as it is Ollama's.
  bool finish(Client& client) {
    client.unsent += "0\r\n\r\n";
    client.answering = false;
    if (!flush(client)) return false;
    return client.reader.state() != http1::RequestReader::State::complete || answer(client);
  }

  bool flush(Client& client) {
    while (!client.unsent.empty()) {
      const ssize_t count = ::send(client.socket.get(), client.unsent.data(), client.unsent.size(), MSG_NOSIGNAL);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return errno == EAGAIN;
      client.unsent.erase(0, static_cast<size_t>(count));
    }
    return true;
  }

  Fd listener_;
  Fd epoll_;
  std::map<Client*, std::unique_ptr<Client>> clients_;
  Timers timers_;  // each client's next line, or its first
};

}  // namespace

int main(int argc, char** argv) {
  int port = 0;
  bool understood = argc == 1;
  if (argc == 3 && std::string_view(argv[1]) == "--port") {
    const std::string_view text(argv[2]);
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
    understood = error == std::errc() && end == text.data() + text.size() && port >= 0 && port <= 65535;
  }
  if (!understood) {
    std::fputs("usage: bench_ollama [--port N (0: a free one)]\n", stderr);
    return 2;
  }
  try {
    Fd listener = harness::listen_on_loopback(port);
    std::fprintf(stderr, "listening on http://127.0.0.1:%d\n", harness::port_of(listener));
    Server(std::move(listener)).run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_ollama: %s\n", error.what());
    return 1;
  }
}
