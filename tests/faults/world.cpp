#include "tests/faults/world.hpp"

#include <signal.h>

#include <algorithm>
#include <cstdio>

namespace faults {
namespace {

constexpr int kSettleMs = 10000;
constexpr int kCleanMs = 15000;  // for replies that wait on disk to be stored

// Events of any run.
const char* const kUsualEvents[] = {"request", "stopping", "stopped", "table_create", "database_back", "ollama_back"};

Arguments usual_arguments(const Setup& setup, const std::string& conninfo, const std::string& ollama_url, const std::string& state) {
  const std::string& database = setup.conninfo.empty() ? conninfo : setup.conninfo;
  Arguments arguments{"--host", "127.0.0.1", "--port", "0", "--db", database, "--ollama", ollama_url, "--state-dir", state};
  if (setup.tls) {
    const Certificate& certificate = test_certificate();
    arguments.insert(arguments.end(), {"--cert", certificate.cert_path, "--key", certificate.key_path});
  } else {
    arguments.emplace_back("--http");
  }
  arguments.insert(arguments.end(), setup.arguments.begin(), setup.arguments.end());
  return arguments;
}

bool is_expected(const std::string& line, const std::vector<std::string>& events) {
  if (line.find("listening on http") != std::string::npos) return true;
  const auto names = [&](const std::string& event) { return line.find("event=" + event + " ") != std::string::npos || line.ends_with("event=" + event); };
  if (std::any_of(events.begin(), events.end(), names)) return true;
  if (line.find("level=error") != std::string::npos || line.find("status=500") != std::string::npos) return false;
  return std::any_of(std::begin(kUsualEvents), std::end(kUsualEvents), names);
}

// The end of a log, for failure messages.
std::string last_lines(const std::string& log) {
  constexpr size_t kLines = 40;
  const std::vector<std::string> lines = lines_of(log);
  std::string text;
  for (size_t i = lines.size() - std::min(lines.size(), kLines); i < lines.size(); ++i) text += lines[i] + "\n";
  return text;
}

}  // namespace

World::World(Setup setup) : setup_(std::move(setup)) {
  raise_descriptor_limit();
  if (setup_.cluster == nullptr) database_ = std::make_unique<Database>();
  ollama.answer_with(talk());
  start();
  sanitized_ = has_sanitizer(pid());
  warm_up();
}

World::~World() {
  if (!finished_ && chatterd_) {
    INFO("the case ended early; the log:\n" << last_lines(chatterd_->err()));
    CHECK(finished_);
  }
}

std::unique_ptr<Chatterd> World::start_another() const {
  const std::string conninfo = setup_.cluster != nullptr ? setup_.cluster->conninfo(setup_.database_port) : database_->conninfo(setup_.database_port);
  return std::make_unique<Chatterd>(usual_arguments(setup_, conninfo, ollama.url(), state_folder_.file("state")));
}

void World::start() {
  if (chatterd_) judge_log();
  chatterd_.reset();
  chatterd_ = start_another();
  port_ = chatterd_->wait_until_ready().port;
}

void World::kill() {
  chatterd_->signal(SIGKILL);
  REQUIRE(chatterd_->wait_exit(kPatienceMs) == 128 + SIGKILL);
}

double World::stop(int patience_ms) {
  const auto began = Clock::now();
  const auto status = chatterd_->stop(patience_ms);
  INFO("after SIGTERM; the log:\n" << last_lines(chatterd_->err()));
  CHECK(status.value_or(-1) == 0);
  return ms_between(began, Clock::now());
}

Endpoint World::endpoint() const { return {"127.0.0.1", port_, setup_.tls}; }

Turn World::turn(const std::string& app, const std::string& prompt) {
  Turn made = run_turn(endpoint(), app, prompt);
  log.add(app, made);
  return made;
}

double World::wait_for_service(int patience_ms) {
  const auto began = Clock::now();
  const std::string app = "probe-" + std::to_string(++probes_);
  int tries = 0;
  const bool served = eventually([&] { return turn(app, app + "#" + std::to_string(++tries)).status == 200; }, patience_ms);
  INFO("the log:\n" << last_lines(chatterd_->err()));
  REQUIRE(served);
  return ms_between(began, Clock::now());
}

double World::ping() const {
  const auto began = Clock::now();
  try {
    const Response response = exchange(endpoint(), {"GET", "/", "", {}});
    return response.status() == 200 ? ms_between(began, Clock::now()) : -1;
  } catch (const std::exception&) {
    return -1;
  }
}

std::vector<Row> World::sql(const std::string& text) const {
  if (setup_.cluster != nullptr) return SqlConnection(setup_.cluster->admin_conninfo()).run(text);
  return database_->connect().run(text);
}

std::vector<Row> World::conversation(const std::string& app) const {
  return sql("SELECT name, message FROM chatts WHERE appid = '" + app + "' ORDER BY seq");
}

std::vector<Row> World::wait_for_rows(const std::string& app, size_t count) const {
  std::vector<Row> rows;
  eventually([&] { return (rows = conversation(app)).size() >= count; });
  return rows;
}

Vitals World::vitals() const {
  Vitals now;
  now.threads = threads_of(pid());
  now.descriptors = descriptors_of(pid());
  now.database_connections = std::stoul(
      sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chatterd' AND datname = current_database()")[0][0]);
  return now;
}

void World::warm_up() {
  const Turn made = turn("warm-up", "warm-up#1");
  INFO("the log:\n" << last_lines(chatterd_->err()));
  REQUIRE(made.status == 200);
  // Its own connection is gone once the number of descriptors stands still.
  size_t before = 0;
  eventually([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return std::exchange(before, descriptors_of(pid())) == descriptors_of(pid());
  });
  base_ = vitals();
  // Of several servers it is another that has them now: one is kept (close_idle() in db.hpp).
  if (!setup_.conninfo.empty()) base_.database_connections = 1;
}

void World::finish() {
  finished_ = true;
  std::vector<std::string> found;
  const bool clean = eventually(
      [&] {
        found = violations(log, sql("SELECT appid, name, message FROM chatts WHERE appid IS NOT NULL ORDER BY appid, seq"), reply_to);
        if (!found.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(100));
        return found.empty();
      },
      kCleanMs);
  std::string all;
  for (size_t i = 0; i < std::min<size_t>(found.size(), 20); ++i) all += found[i] + "\n";
  report(log.summary());
  INFO(found.size() << " violations:\n" << all);
  CHECK(clean);
  CHECK_FALSE(chatterd_->wait_exit(0).has_value());
  Vitals now;
  const bool settled = eventually(
      [&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        return (now = vitals()).within(base_);
      },
      kSettleMs);
  INFO("base line: " << base_.text() << "; after 10 s: " << now.text());
  CHECK(settled);
  CHECK(ping() >= 0);
  stop();
  judge_log();
}

void World::judge_log() {
  std::string complaint;
  for (const std::string& line : lines_of(chatterd_->err())) {
    if (!is_expected(line, setup_.events)) complaint += line + "\n";
  }
  INFO("unexpected in the log:\n" << complaint);
  CHECK(complaint.empty());
}

std::string ms_text(double ms) { return std::to_string(static_cast<int>(ms)) + " ms"; }

void report(const std::string& sentence) {
  std::printf("  %s\n", sentence.c_str());
  std::fflush(stdout);
}

}  // namespace faults
