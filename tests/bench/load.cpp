// bench_load: runs one load against a server and prints its figures on one line of standard output; see
// kUsage. One thread with one epoll, so that it takes as little as it can of the machine that is measured.
#include <sys/epoll.h>

#include <array>
#include <charconv>
#include <cstdio>
#include <ctime>
#include <deque>
#include <exception>
#include <map>
#include <optional>
#include <stdexcept>
#include <thread>

#include "tests/bench/client.hpp"
#include "tests/bench/loads.hpp"
#include "tests/bench/meter.hpp"

namespace {

using namespace bench;
using std::chrono::milliseconds;

constexpr const char* kUsage = R"(usage: bench_load LOAD [--option VALUE...]

Loads:
  stream      COUNT answers by /llmchat/ (--model n=100;d=20ms), each of a conversation of its own, each
              checked token by token. ttft: to the first token; turn: to the end; relay: from Ollama's write
              of a line to the client's read of it
  requests    COUNT requests, or as many as fit into the time, over connections that are kept
  handshakes  the same with a new connection for each
  download    COUNT answers that are JSON arrays
  idle        nothing for that time; only --pid is looked at
Options:
  --url URL          the server, without a path
  --clients N        at the same time (1)
  --count N          requests in all (1)
  --for TIME         instead of --count: 5s, 300ms
  --rate N           requests a second whether answers come or not, over all clients; the time that a
                     request takes counts from when it was due
  --ramp TIME        in which the clients begin one after the other
  --model NAME       what bench_ollama is to answer
  --app ID           conversations are ID0, ID1 and so on, instead of ones not used before
  --grow             each client has one conversation only
  --prompt-bytes N   size of a prompt
  --path PATH        of requests and downloads
  --body TEXT        of requests, which are POSTs then
  --resume           resume TLS sessions
  --pid PID          the server's process: its processor time, memory and threads
  --aftermath TIME   how long after the end it is looked at (300ms), since it still stores and logs then
  --patience TIME    what has not ended by itself fails after this long without any answer (30s)
The exit status is 1 if anything failed; the reasons stand on standard error.
)";

constexpr auto kSampleEvery = milliseconds(50);
constexpr int kEventsMax = 256;
// Of an answer that is no success, for the reason.
constexpr size_t kExcerptBytes = 160;

struct Options {
  std::string load, url, model = "n=50", app, path, body;
  long clients = 1, count = 0, rate = 0, prompt_bytes = 11, pid = 0;
  Clock::duration time{}, ramp{}, patience = std::chrono::seconds(30), aftermath = milliseconds(300);
  bool grow = false, resume = false;
};

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

long parse_number(const std::string& name, std::string_view text) {
  long value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1) throw UsageError(name + " needs a number from 1 on");
  return value;
}

Options parse_options(int argc, char** argv) {
  Options options;
  const std::map<std::string, std::string*> texts{{"--url", &options.url}, {"--model", &options.model}, {"--app", &options.app},
                                                  {"--path", &options.path}, {"--body", &options.body}};
  const std::map<std::string, long*> numbers{{"--clients", &options.clients}, {"--count", &options.count}, {"--rate", &options.rate},
                                             {"--prompt-bytes", &options.prompt_bytes}, {"--pid", &options.pid}};
  const std::map<std::string, Clock::duration*> times{{"--for", &options.time}, {"--ramp", &options.ramp},
                                                      {"--patience", &options.patience}, {"--aftermath", &options.aftermath}};
  const std::map<std::string, bool*> flags{{"--grow", &options.grow}, {"--resume", &options.resume}};
  if (argc < 2) throw UsageError("which load?");
  options.load = argv[1];
  for (int i = 2; i < argc; ++i) {
    const std::string name = argv[i];
    if (const auto flag = flags.find(name); flag != flags.end()) {
      *flag->second = true;
      continue;
    }
    if (++i == argc) throw UsageError(name + " is unknown or needs a value");
    if (const auto text = texts.find(name); text != texts.end()) {
      *text->second = argv[i];
    } else if (const auto number = numbers.find(name); number != numbers.end()) {
      *number->second = parse_number(name, argv[i]);
    } else if (const auto time = times.find(name); time != times.end()) {
      const auto parsed = parse_duration(argv[i]);
      if (!parsed) throw UsageError(name + " needs a time such as 5s or 300ms");
      *time->second = *parsed;
    } else {
      throw UsageError(name + " is unknown");
    }
  }
  if (options.count == 0 && options.time == Clock::duration{}) options.count = 1;
  return options;
}

std::unique_ptr<Load> make_load(const Options& options, const Target& target) {
  const auto clients = static_cast<size_t>(options.clients);
  if (options.load == "stream") {
    StreamSettings settings;
    settings.host = target.host;
    settings.model = options.model;
    settings.app_id = options.app.empty() ? "bench-" + std::to_string(ns_of(Clock::now())) + "-" : options.app;
    settings.one_conversation = options.grow;
    settings.prompt_bytes = static_cast<size_t>(options.prompt_bytes);
    auto load = make_streams(settings, clients);
    if (!load) throw UsageError("--model needs a name such as 'n=100;d=20ms;first=1s;pad=50'");
    return load;
  }
  RequestSettings settings;
  settings.host = target.host;
  settings.is_array = options.load == "download";
  settings.path = !options.path.empty() ? options.path : settings.is_array ? "/getchatts/" : "/";
  settings.body = options.body;
  return make_requests(settings, clients);
}

// Gives the load's jobs to the clients as they become free, until there are no more and the last has ended.
class Runner {
 public:
  Runner(const Options& options, const Target& target, Load& load, ProcessMeter* meter)
      : options_(options), load_(load), meter_(meter), tls_(make_tls_context(options.resume)), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    seats_.resize(static_cast<size_t>(options.clients));
    for (size_t i = 0; i < seats_.size(); ++i) clients_.emplace_back(target, tls_.get(), epoll_.get(), i);
  }

  void run() {
    began_ = heard_ = Clock::now();
    while (true) {
      const auto now = Clock::now();
      while (admitted_ < seats_.size() && now >= admission(admitted_)) free_.push_back(admitted_++);
      free_.insert(free_.end(), resting_.begin(), resting_.end());
      resting_.clear();
      while (!free_.empty() && has_job(now) && due(now) <= now) begin_job(now);
      if (busy_ == 0 && !has_job(now)) break;
      if (busy_ > 0 && now > heard_ + options_.patience) {
        failures_["no answer for too long"] += busy_;
        break;
      }
      if (now >= sample_at_ && meter_ != nullptr) {
        meter_->sample();
        sample_at_ = now + kSampleEvery;
      }
      handle_events(now);
    }
    wall_s_ = std::chrono::duration<double>(Clock::now() - began_).count();
  }

  void report(Figures& figures) const {
    figures.add("ok", static_cast<double>(ok_));
    figures.add("failed", static_cast<double>(failed()));
    figures.add("wall_s", wall_s_);
    if (options_.load == "handshakes") figures.add("resumed_share", ok_ == 0 ? 0 : static_cast<double>(resumed_) / static_cast<double>(ok_));
    load_.report(figures, wall_s_);
  }

  [[nodiscard]] long failed() const {
    long sum = 0;
    for (const auto& [reason, count] : failures_) sum += count;
    return sum;
  }
  [[nodiscard]] const std::map<std::string, long>& failures() const { return failures_; }

 private:
  // What a client is at.
  struct Seat {
    Clock::time_point due;  // when its request was to begin
    bool busy = false;
    std::string excerpt;  // of an answer that is no success
  };

  [[nodiscard]] Clock::time_point admission(size_t client) const {
    return began_ + options_.ramp * static_cast<long>(client) / options_.clients;
  }
  // When the next job is to begin.
  [[nodiscard]] Clock::time_point due(Clock::time_point now) const {
    return options_.rate == 0 ? now : began_ + std::chrono::nanoseconds(1'000'000'000LL * next_job_ / options_.rate);
  }
  [[nodiscard]] bool has_job(Clock::time_point now) const {
    return options_.count > 0 ? next_job_ < options_.count : due(now) < began_ + options_.time;
  }

  void begin_job(Clock::time_point now) {
    const size_t client = free_.front();
    free_.pop_front();
    Seat& seat = seats_[client];
    seat.due = due(now);
    seat.busy = true;
    seat.excerpt.clear();
    ++busy_;
    clients_[client].start(load_.next_request(client, next_job_++));
    go_on(client);
  }

  void go_on(size_t number) {
    Client& client = clients_[number];
    Seat& seat = seats_[number];
    const auto progress = client.advance([&](std::string_view bytes, Clock::time_point read_at) {
      heard_ = read_at;
      if (client.status() == 200) load_.take(number, bytes, read_at);
      else seat.excerpt += bytes.substr(0, kExcerptBytes - std::min(kExcerptBytes, seat.excerpt.size()));
    });
    if (progress == Client::Progress::waiting || !seat.busy) return;
    std::string problem = client.problem();
    if (progress == Client::Progress::complete) {
      const auto now = heard_ = Clock::now();
      problem = client.status() != 200 ? "status " + std::to_string(client.status()) + ": " + seat.excerpt
                                       : load_.finish(number, std::chrono::duration<double>(now - seat.due).count());
    }
    if (problem.empty()) {
      ++ok_;
      if (client.resumed()) ++resumed_;
    } else {
      ++failures_[problem];
    }
    if (options_.load == "handshakes") client.close();
    seat.busy = false;
    --busy_;
    resting_.push_back(number);
  }

  void handle_events(Clock::time_point now) {
    auto wake_up = now + kSampleEvery;
    if (!resting_.empty()) wake_up = now;
    if (!free_.empty() && has_job(now)) wake_up = std::min(wake_up, due(now));
    if (admitted_ < seats_.size()) wake_up = std::min(wake_up, admission(admitted_));
    const timespec left{0, static_cast<long>(std::max(0LL, ns_of(wake_up) - ns_of(Clock::now())))};
    std::array<epoll_event, kEventsMax> events;
    const int count = ::epoll_pwait2(epoll_.get(), events.data(), kEventsMax, &left, nullptr);
    for (int i = 0; i < count; ++i) go_on(static_cast<size_t>(events[static_cast<size_t>(i)].data.u64));
  }

  const Options& options_;
  Load& load_;
  ProcessMeter* meter_;
  TlsContext tls_;
  harness::Fd epoll_;
  std::deque<Client> clients_;
  std::vector<Seat> seats_;     // of each client
  size_t admitted_ = 0;         // clients that the ramp has let in
  std::deque<size_t> free_;     // clients without a job
  std::vector<size_t> resting_;  // just became free: one that fails at once must not keep others waiting
  long next_job_ = 0, busy_ = 0, ok_ = 0, resumed_ = 0;
  std::map<std::string, long> failures_;  // by their reason
  Clock::time_point began_, heard_, sample_at_;
  double wall_s_ = 0;
};

// Lets time pass in which nothing is asked.
void look_on(ProcessMeter& meter, Clock::duration time) {
  for (const auto end = Clock::now() + time; Clock::now() < end; meter.sample()) {
    std::this_thread::sleep_for(std::min<Clock::duration>(kSampleEvery, end - Clock::now()));
  }
}

void report_process(ProcessMeter& meter, Figures& figures) {
  figures.add("cpu_s", meter.cpu_s());
  figures.add("rss_start_mib", meter.first().rss_mib);
  figures.add("rss_peak_mib", meter.peak().rss_mib);
  figures.add("rss_end_mib", meter.last().rss_mib);
  figures.add("threads_peak", static_cast<double>(meter.peak().threads));
  figures.add("threads_end", static_cast<double>(meter.last().threads));
}

int run(const Options& options) {
  std::optional<ProcessMeter> meter;
  if (options.pid != 0) meter.emplace(static_cast<pid_t>(options.pid));
  Figures figures;
  long failed = 0;
  if (options.load == "idle") {
    if (!meter) throw UsageError("idle needs --pid");
    look_on(*meter, options.time);
  } else if (options.load == "stream" || options.load == "requests" || options.load == "handshakes" || options.load == "download") {
    const auto target = parse_target(options.url);
    if (!target) throw UsageError("--url needs http://HOST:PORT or https://HOST:PORT of a known host");
    const auto load = make_load(options, *target);
    Runner runner(options, *target, *load, meter ? &*meter : nullptr);
    runner.run();
    if (meter) look_on(*meter, options.aftermath);
    runner.report(figures);
    for (const auto& [reason, count] : runner.failures()) std::fprintf(stderr, "%ld failed: %s\n", count, reason.c_str());
    failed = runner.failed();
  } else {
    throw UsageError("there is no load '" + options.load + "'");
  }
  if (meter) report_process(*meter, figures);
  std::printf("%s\n", figures.text().c_str());
  return failed == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "--help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    return run(parse_options(argc, argv));
  } catch (const UsageError& error) {
    std::fprintf(stderr, "bench_load: %s (--help explains)\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_load: %s\n", error.what());
    return 3;
  }
}
