#include "health.hpp"

#include <algorithm>
#include <utility>

#include "db.hpp"
#include "metrics.hpp"
#include "ollama.hpp"

namespace {

// A look that takes longer has failed; also how long an end may have to wait for one.
constexpr auto kLookMax = milliseconds(1000);
// How old a finding may be: however many ask, there are five looks a second at most.
constexpr auto kFresh = milliseconds(200);
// Between two looks at what is away, so that the log says in time that it is back.
constexpr auto kAwayPause = milliseconds(2000);

std::string look_at_database(Database& database) { return database.probe(Deadline::after(kLookMax)).value_or(""); }

// With several addresses one that answers is enough.
std::string look_at_ollama(Ollama& ollama) {
  PlainWaiter waiter;
  const auto generation = ollama.start("GET", "/version", "");
  std::string problem;
  if (generation->read_head(waiter, Deadline::after(kLookMax)) != Generation::Event::head) {
    problem = generation->detail().empty() ? "no answer in time" : generation->detail();
  } else if (generation->status() != 200) {
    problem = "it answers with status " + std::to_string(generation->status());
  }
  metrics::ollama_up.set(problem.empty() ? 1 : 0);
  return problem;
}

bool all_rest(Ollama& ollama) {
  const auto states = ollama.addresses();
  return std::all_of(states.begin(), states.end(), [](const OllamaState& state) { return state.resting; });
}

}  // namespace

Probe::Probe(std::function<std::string()> look, std::function<bool()> away) : look_(std::move(look)), away_(std::move(away)) {}

void Probe::start() {
  thread_ = std::thread([this] { run(); });
}

Probe::~Probe() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool Probe::is_fresh() const { return found_at_ != Clock::time_point{} && Clock::now() < found_at_ + kFresh; }

void Probe::run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    changed_.wait_for(lock, kAwayPause, [this] { return wanted_ || ending_; });
    if (ending_) return;
    lock.unlock();
    const bool look = away_();
    lock.lock();
    if (!look && !wanted_) continue;
    lock.unlock();
    const auto began = Clock::now();
    std::string problem = look_();
    const auto ended = Clock::now();
    lock.lock();
    last_ = {problem.empty(), std::chrono::duration<double, std::milli>(ended - began).count(), std::move(problem)};
    found_at_ = ended;
    wanted_ = false;
    changed_.notify_all();
  }
}

void Probe::ask() {
  const std::lock_guard lock(mutex_);
  if (is_fresh()) return;
  wanted_ = true;
  changed_.notify_all();
}

Probe::Finding Probe::find(Deadline deadline) {
  const auto asked = Clock::now();
  ask();
  std::unique_lock lock(mutex_);
  if (is_fresh()) return last_;
  const bool found = changed_.wait_until(lock, deadline.at(), [&] { return found_at_ >= asked || ending_; });
  if (found && !ending_) return last_;
  return {false, std::chrono::duration<double, std::milli>(Clock::now() - asked).count(), "no answer in time"};
}

Health::Health(Database& database_in, Ollama& ollama_in)
    : database([&database_in] { return look_at_database(database_in); }, [&database_in] { return database_in.away(); }),
      ollama([&ollama_in] { return look_at_ollama(ollama_in); }, [&ollama_in] { return all_rest(ollama_in); }) {}

void Health::start() {
  database.start();
  ollama.start();
  ollama.ask();
}
