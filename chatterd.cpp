// chatterd's boot, in order, its life between the signals, and its end.
#include <malloc.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "admin.hpp"
#include "check.hpp"
#include "config.hpp"
#include "db.hpp"
#include "handlers.hpp"
#include "health.hpp"
#include "keeper.hpp"
#include "log.hpp"
#include "ollama.hpp"
#include "privileges.hpp"
#include "reload.hpp"
#include "server.hpp"
#include "service.hpp"
#include "spool.hpp"
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
// What the start may wait for all Ollamas together; a living one answers this question at once.
constexpr auto kLookMax = milliseconds(2000);

// A larger piece of memory is given back as soon as it is free, such as that of a prompt with a photo. Left to itself
// malloc raises this to the largest that was ever freed, and keeps the rest until the server is at rest.
constexpr int kMappedBytesMin = 1 << 20;

// Since Linux 6.17 who sleeps at a futex is found by a table of the process's own, with 16 slots on a machine of two
// processors: with a thousand sleeping workers each waking up is a search among sixty. A slot takes 64 bytes.
// PR_FUTEX_HASH_SET_SLOTS(2const); older headers don't name it.
constexpr int kFutexHash = 78;
constexpr unsigned long kFutexHashSetSlots = 1;
constexpr unsigned long kFutexSlots = 1024;

void set_process_limits() {
  // By default each thread up to eight a processor gets a heap of its own, and what one has freed the
  // others can't use: with many short-lived threads that is memory for nothing.
  mallopt(M_ARENA_MAX, static_cast<int>(std::max(2u, std::thread::hardware_concurrency())));
  mallopt(M_MMAP_THRESHOLD, kMappedBytesMin);
  ::prctl(kFutexHash, kFutexHashSetSlots, kFutexSlots, 0, 0);  // an older kernel has a large one for all
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
  sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// Returns the signal that came, or 0.
int wait_for_signal(const sigset_t& signals, milliseconds at_most) {
  const timespec time{at_most.count() / 1000, at_most.count() % 1000 * 1'000'000};
  return std::max(0, sigtimedwait(&signals, nullptr, &time));
}

bool ends(int signal) { return signal == SIGTERM || signal == SIGINT; }

// Says which Ollama does not answer; it may come later.
void look_for_ollama(Ollama& ollama) {
  const std::vector<OllamaState> states = ollama.addresses();
  for (size_t i = 0; i < states.size(); ++i) {
    PlainWaiter waiter;
    const auto generation = ollama.start_at(i, "GET", "/version", "");
    if (generation->read_head(waiter, Deadline::after(kLookMax / states.size())) == Generation::Event::head) continue;
    const std::string reason = generation->detail().empty() ? "no answer in time" : generation->detail();
    LogLine(LogLevel::warning, "ollama_away").add("url", states[i].url).add("reason", reason);
  }
}

int fail(const StartProblem& problem) {
  std::cerr << std::string(journal_prefix(LogLevel::error)) + "chatterd: " + problem.sentence + "\n" << std::flush;
  return problem.wrong_configuration ? kExitConfiguration : kExitFailure;
}

int refuse_configuration(const std::string& line) { return fail({true, line}); }

// Gives the memory of a burst back once it is over, for malloc keeps it. Call it about once a second.
void trim_memory(Server& server) {
  static bool trimmed = false;
  const bool at_rest = server.at_rest();
  if (at_rest && !trimmed) malloc_trim(0);
  trimmed = at_rest;
}

// For `systemctl status`: the streams, and what is away.
std::string status_text(Services& services) {
  const size_t streams = services.slots.taken();
  std::string text = std::to_string(streams) + (streams == 1 ? " stream" : " streams");
  if (services.database.away()) text += "; database away";
  const std::vector<OllamaState> ollamas = services.ollama.addresses();
  const auto away = static_cast<size_t>(std::count_if(ollamas.begin(), ollamas.end(), [](const OllamaState& state) { return state.resting; }));
  if (away == ollamas.size()) {
    text += "; Ollama away";
  } else if (away != 0) {
    text += "; " + std::to_string(away) + " of " + std::to_string(ollamas.size()) + " Ollamas away";
  }
  return text;
}

// Tells systemd's watchdog that chatterd is alive, as long as it proves to be. The thread that does so is the one that
// also takes the locks of pools, slots, database and Ollama about once a second, so that one held for ever counts too.
class Heart {
 public:
  explicit Heart(ServiceManager& manager) : manager_(manager) {}

  /// How long the thread may sleep between two calls of beat(): a second, so that it can look after things, and with a
  /// short watchdog less.
  milliseconds pause() const { return std::min(milliseconds(1000), manager_.watchdog().value_or(milliseconds(4000)) / 4); }

  void beat(Server& server) {
    const auto watchdog = manager_.watchdog();
    if (!watchdog || Clock::now() < beat_at_ + *watchdog / 4) return;
    beat_at_ = Clock::now();
    const std::string_view stuck = server.self_check(*watchdog / 2);
    if (stuck.empty()) return manager_.alive();
    LogLine(LogLevel::error, "self_check_failed").add("part", stuck);
  }

 private:
  ServiceManager& manager_;
  Clock::time_point beat_at_{};
};

// How long streams may take to end once they are told to: a client may not read just then, and the database not answer
// when the turn's end and the reply are to be stored; then that is kept for later.
milliseconds ending_max(const Config& config) {
  constexpr auto kSpare = std::chrono::seconds(1);
  return std::max<milliseconds>(Server::kEndingMin, config.write_timeout + 2 * config.db_timeout + kSpare);
}

// Lets what is under way come to its end; a second signal to end does so at once.
int stop(Server& server, Services& services, Admin& admin, ServiceManager& manager, const sigset_t& signals) {
  const auto config = services.config.get();
  const milliseconds drain = config->drain;
  const milliseconds ending = ending_max(*config);
  LogLine(LogLevel::info, "stopping");
  admin.stop();
  manager.stopping(drain + ending);
  services.conversations.close();
  std::atomic<bool> all_ended{false};
  std::thread stopper([&] {
    all_ended = server.stop(drain, ending);
    if (!all_ended) LogLine(LogLevel::error, "requests_cut_off");
    kill(getpid(), SIGTERM);  // wakes the wait below
  });
  while (!ends(wait_for_signal(signals, std::chrono::seconds(1)))) manager.set_status("stopping; " + status_text(services));
  // Threads may still be at work: no time for destructors, which would wait for them.
  if (!all_ended) _exit(kExitOk);
  stopper.join();
  LogLine(LogLevel::info, "stopped");
  return kExitOk;
}

// Serves until a signal to end.
int serve(Server& server, Services& services, Reloader& reloader, const Keeper& keeper, Admin& admin, ServiceManager& manager,
          const sigset_t& signals) {
  server.start();
  admin.start();
  std::cerr << "listening on " + server.url() + "\n" << std::flush;
  manager.ready();
  Heart heart(manager);
  for (int signal = 0; !ends(signal); signal = wait_for_signal(signals, heart.pause())) {
    if (signal == SIGHUP) {
      manager.reloading();
      reloader.reload();
      manager.ready();
    }
    services.ollama.close_idle();
    trim_memory(server);
    if (keeper.failed()) return kExitFailure;
    manager.set_status(status_text(services));
    heart.beat(server);
  }
  return stop(server, services, admin, manager, signals);
}

int run(const Config& config, const std::vector<std::string>& arguments, const EnvFile& env_file) {
  set_process_limits();
  set_log_level(*log_level_of(config.log_level));
  set_log_format(*log_format_of(config.log_format));
  const sigset_t signals = block_signals();
  ServiceManager manager;
  auto passed = take_passed();
  if (!passed.ok()) return fail(passed.error());
  auto addresses = OllamaAddress::parse_list(config.ollama);
  if (!addresses.ok()) return refuse_configuration("--ollama: " + addresses.error());
  SslContext tls;
  if (!config.http) {
    auto context = make_server_context(config.cert, config.key);
    if (!context.ok()) return refuse_configuration(context.error().sentence);
    tls = std::move(context.value());
  }
  const std::string conninfo = config.db.empty() ? default_conninfo() : config.db;
  if (const auto problem = conninfo_problem(conninfo)) return refuse_configuration("--db: " + *problem);
  Database database({conninfo, config.db_pool, config.db_timeout, config.max_history});
  Spool spool;
  Ollama ollama(std::move(addresses.value()));
  Services services(config, database, spool, ollama);
  if (!config.api_keys.empty()) {
    if (const auto problem = services.api_keys.load(config.api_keys)) return refuse_configuration(*problem);
  }
  Server server(server_settings(config), std::move(tls));
  register_routes(server, services);
  Health health(database, ollama);
  Admin admin(server, services, health, kVersion);
  // The last things that may need root: the ports, the state folder, the device of the processors' latency, real time.
  if (passed.value().socket) {
    server.adopt(std::move(passed.value().socket));
  } else if (const auto problem = server.bind()) {
    return fail(*problem);
  }
  if (!config.admin.empty()) {
    if (const auto problem = admin.bind(config.admin)) return fail(*problem);
  }
  const std::string state_folder = config.state_dir.empty() ? default_state_folder() : config.state_dir;
  if (const auto problem = spool.open(state_folder, database_name(conninfo), database.run())) {
    if (!config.state_dir.empty()) return refuse_configuration(*problem);
    LogLine(LogLevel::warning, "no_state_folder").add("reason", *problem);
  }
  UniqueFd cpu_latency = passed.value().cpu_latency ? std::move(passed.value().cpu_latency) : cpu_dma_latency();
  if (cpu_latency) {
    server.use_cpu_latency(std::move(cpu_latency));
  } else {
    LogLine(LogLevel::debug, "no_cpu_latency");
  }
  {
    const RealTime real_time;
    if (const auto problem = drop_root(config.user)) return fail(*problem);
    if (real_time.granted()) {
      server.use_real_time();
    } else {
      LogLine(LogLevel::debug, "no_real_time");
    }
  }
  Keeper keeper(database, spool);
  if (!keeper.begin()) return kExitFailure;
  look_for_ollama(ollama);
  health.start();
  Reloader reloader(arguments, env_file, services, server);
  return serve(server, services, reloader, keeper, admin, manager, signals);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const auto environment = [](const char* name) -> const char* { return std::getenv(name); };
  const auto env_file = load_env_file(arguments, environment);
  if (!env_file.ok()) return refuse_configuration(env_file.error().line);
  const auto config = parse_config(arguments, environment, env_file.value());
  if (!config.ok()) return refuse_configuration(config.error().line);
  adopt_environment(env_file.value());
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
  return run(chosen, arguments, env_file.value());
}
