// chatterd's boot, in order, and its end.
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "check.hpp"
#include "config.hpp"
#include "db.hpp"
#include "handlers.hpp"
#include "log.hpp"
#include "ollama.hpp"
#include "server.hpp"
#include "tls.hpp"

namespace {

constexpr const char* kVersion = "1.0.0";

// The contract's exit statuses (section 6).
constexpr int kExitOk = 0;
constexpr int kExitFailure = 1;
constexpr int kExitConfiguration = 2;

// A thread of the pool needs a few dozen KB; a thousand of them should not reserve 8 MB each, nor
// should an unlimited or tiny stack of the environment be theirs.
constexpr size_t kThreadStackBytes = size_t{1} << 20;

// The first look at the database, and further ones as long as it is away.
constexpr auto kSchemaPause = std::chrono::seconds(1);

void set_process_limits() {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kThreadStackBytes);
  pthread_setattr_default_np(&attributes);
  pthread_attr_destroy(&attributes);
  rlimit descriptors{};
  if (getrlimit(RLIMIT_NOFILE, &descriptors) == 0) {
    descriptors.rlim_cur = descriptors.rlim_max;
    setrlimit(RLIMIT_NOFILE, &descriptors);
  }
}

// Signals are taken by wait_for_signal() alone; threads inherit the mask.
sigset_t block_signals() {
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// One second at most, so that the caller can look after things. Returns whether a signal came.
bool wait_for_signal(const sigset_t& signals) {
  const timespec second{1, 0};
  return sigtimedwait(&signals, nullptr, &second) > 0;
}

// Makes the table usable, however long the database stays away.
class SchemaKeeper {
 public:
  explicit SchemaKeeper(Database& database) : database_(database) {}
  ~SchemaKeeper() {
    ended_ = true;
    if (thread_.joinable()) thread_.join();
  }

  // The first try. False: somebody has to act before chatterd can serve, and has been told.
  bool begin() {
    const auto problem = database_.prepare_schema();
    if (!problem) return true;
    if (!problem->can_retry) {
      std::cerr << "chatterd: " << problem->sentence << std::endl;
      return false;
    }
    LogLine(LogLevel::warning, "database_away").add("reason", problem->sentence);
    thread_ = std::thread([this] { keep_trying(); });
    return true;
  }
  bool failed() const { return failed_; }

 private:
  void keep_trying() {
    while (!ended_) {
      const Deadline next = Deadline::after(kSchemaPause);
      while (!ended_ && !next.passed()) std::this_thread::sleep_for(milliseconds(50));
      if (ended_) return;
      const auto problem = database_.prepare_schema();
      if (!problem) {
        LogLine(LogLevel::info, "database_back");
        return;
      }
      if (problem->can_retry) continue;
      std::cerr << "chatterd: " << problem->sentence << std::endl;
      failed_ = true;
      return;
    }
  }

  Database& database_;
  std::thread thread_;
  std::atomic<bool> ended_{false};
  std::atomic<bool> failed_{false};
};

// Says whether Ollama answers; it may come later.
void look_for_ollama(Ollama& ollama, const std::string& url) {
  PlainWaiter waiter;
  const auto generation = ollama.start("GET", "/version", "");
  if (generation->read_head(waiter, Deadline::after(std::chrono::seconds(2))) == Generation::Event::head) return;
  LogLine(LogLevel::warning, "ollama_away").add("url", url).add("reason", generation->detail());
}

Server::Settings server_settings(const Config& config) {
  Server::Settings settings;
  settings.host = config.host;
  settings.port = config.port;
  settings.body_bytes_max = config.max_body;
  settings.connections_max = config.max_connections;
  settings.threads_max = config.threads_max();
  settings.header_timeout = config.header_timeout;
  settings.body_timeout = config.body_timeout;
  settings.idle_timeout = config.idle_timeout;
  settings.write_timeout = config.write_timeout;
  return settings;
}

int refuse_configuration(const std::string& line) {
  std::cerr << "chatterd: " << line << std::endl;
  return kExitConfiguration;
}

// Serves until a signal; a second one ends at once, whatever is under way.
int serve(Server& server, Services& services, SchemaKeeper& schema, const sigset_t& signals) {
  server.start();
  std::cerr << "listening on " + server.url() + "\n" << std::flush;
  while (!wait_for_signal(signals)) {
    services.database.close_idle();
    services.ollama.close_idle();
    if (schema.failed()) return kExitFailure;
  }
  LogLine(LogLevel::info, "stopping");
  services.conversations.close();
  std::atomic<bool> all_ended{false};
  std::thread stopper([&] {
    all_ended = server.stop(services.config.drain);
    if (!all_ended) LogLine(LogLevel::error, "requests_cut_off");
    kill(getpid(), SIGTERM);  // wakes the wait below
  });
  while (!wait_for_signal(signals)) {
  }
  // Threads may still be at work: no time for destructors, which would wait for them.
  if (!all_ended) _exit(kExitOk);
  stopper.join();
  LogLine(LogLevel::info, "stopped");
  return kExitOk;
}

int run(const Config& config) {
  set_process_limits();
  const sigset_t signals = block_signals();
  const auto address = OllamaAddress::parse(config.ollama);
  if (!address) return refuse_configuration("--ollama: '" + config.ollama + "' is not an http:// URL such as http://localhost:11434");
  SslContext tls;
  if (!config.http) {
    auto context = make_server_context(config.cert, config.key);
    if (!context.ok()) return refuse_configuration(context.error().sentence);
    tls = std::move(context.value());
  }
  Database database({config.db.empty() ? default_conninfo() : config.db, config.db_pool, config.db_timeout});
  Ollama ollama(*address);
  Services services(config, database, ollama);
  Server server(server_settings(config), std::move(tls));
  register_routes(server, services);
  if (const auto problem = server.bind()) {
    std::cerr << "chatterd: " << *problem << std::endl;
    return kExitFailure;
  }
  SchemaKeeper schema(database);
  if (!schema.begin()) return kExitFailure;
  look_for_ollama(ollama, config.ollama);
  return serve(server, services, schema, signals);
}

}  // namespace

int main(int argc, char** argv) {
  const auto config = parse_config({argv + 1, argv + argc}, [](const char* name) -> const char* { return std::getenv(name); });
  if (!config.ok()) return refuse_configuration(config.error().line);
  const Config& chosen = config.value();
  if (chosen.help) {
    std::cout << help_text();
    return kExitOk;
  }
  if (chosen.version) {
    std::cout << "chatterd " << kVersion << "\n";
    return kExitOk;
  }
  if (chosen.print_schema) {
    std::cout << schema_sql();
    return kExitOk;
  }
  if (chosen.check) return run_check(chosen) ? kExitOk : kExitFailure;
  return run(chosen);
}
