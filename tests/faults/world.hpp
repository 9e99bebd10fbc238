// What the cases of the fault catalogue share: a chatterd with surroundings that can be hurt, clients that
// log what becomes of their turns, and the judgement at the end.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/catch.hpp"
#include "tests/faults/checker.hpp"
#include "tests/faults/cluster.hpp"
#include "tests/harness/certificate.hpp"
#include "tests/harness/client.hpp"
#include "tests/harness/database.hpp"
#include "tests/harness/net.hpp"
#include "tests/harness/ollama_scripts.hpp"
#include "tests/harness/process.hpp"
#include "tests/harness/scripted_ollama.hpp"
#include "tests/harness/sse.hpp"
#include "tests/harness/vitals.hpp"

namespace faults {

using namespace harness;

// The reply to a prompt when nothing goes wrong, with white space of all kinds, and the script that sends
// it with a pause before each token.
std::vector<std::string> usual_tokens(const std::string& prompt);
std::string usual_reply(const std::string& prompt);
Script talk(int pause_ms = 5);
// The last message of a request to Ollama.
std::string prompt_of(const OllamaRequest& request);

// {"appID":<app>,"model":"m","messages":[{"role":"user","content":<prompt>}],"stream":true}
std::string chat_body(const std::string& app, const std::string& prompt);
// A POST of that, as bytes.
std::string chat_request(const std::string& app, const std::string& prompt);

// One turn from its request to the end of its stream. Never throws.
Turn run_turn(const Endpoint& endpoint, const std::string& app, const std::string& prompt);

struct Setup {
  Arguments arguments = {};
  bool tls = true;
  Cluster* cluster = nullptr;  // null: a database of its own in the run's cluster
  int database_port = 0;       // where chatterd finds the database when something stands between
  std::string conninfo = {};   // what chatterd is given instead, where the cluster is one of several servers
  // Events that the fault explains, beyond those of every run; only these may be errors.
  std::vector<std::string> events = {};
};

class World {
 public:
  explicit World(Setup setup = {});
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // After the end of the one before, with the same database and state folder.
  void start();
  // A further one with the same arguments, database and state folder; its log is not judged.
  [[nodiscard]] std::unique_ptr<Chatterd> start_another() const;
  void kill();  // SIGKILL; returns when it is dead
  // SIGTERM; asserts exit status 0 within the time. Returns how long it took.
  double stop(int patience_ms = kPatienceMs);
  [[nodiscard]] Endpoint endpoint() const;  // any thread
  [[nodiscard]] Chatterd& chatterd() { return *chatterd_; }
  [[nodiscard]] pid_t pid() const { return chatterd_->pid(); }
  // Further arguments for the next start().
  void set_arguments(Arguments arguments) { setup_.arguments = std::move(arguments); }

  // One turn, logged.
  Turn turn(const std::string& app, const std::string& prompt);
  // Waits until a turn in a conversation of its own is acknowledged; returns how long that took, or asserts.
  double wait_for_service(int patience_ms = kPatienceMs);
  // GET / on a connection of its own: milliseconds, or -1 if it failed.
  [[nodiscard]] double ping() const;

  // As a superuser, over a connection of its own.
  std::vector<Row> sql(const std::string& text) const;
  // (name, message) of a conversation, in order.
  std::vector<Row> conversation(const std::string& app) const;
  std::vector<Row> wait_for_rows(const std::string& app, size_t count) const;

  // The state now, and the state to which it must come back, taken after a warm-up turn.
  [[nodiscard]] Vitals vitals() const;
  // What must hold at the end of every case: the checker is content, the process lives, what it holds is
  // back at its base line within 10 s, it exits with 0 at SIGTERM, and nothing unexpected was logged.
  void finish();

  // A limit of time as the issue has it; sanitizers make everything several times slower.
  [[nodiscard]] int within_ms(int ms) const { return sanitized_ ? ms * 4 : ms; }
  [[nodiscard]] bool sanitized() const { return sanitized_; }

  ScriptedOllama ollama;
  TurnLog log;
  ReplyTo reply_to = usual_reply;

 private:
  void judge_log();
  void warm_up();
  Setup setup_;
  const TempFolder state_folder_;
  std::unique_ptr<Database> database_;
  std::unique_ptr<Chatterd> chatterd_;
  std::atomic<int> port_{0};
  Vitals base_;
  bool sanitized_ = false;
  bool finished_ = false;
  int probes_ = 0;
};

// Conversations that go on until stop(), a client and a thread each; a turn follows a turn. The prompts
// are "<app>#<n>", padded to a size.
class Load {
 public:
  Load(World& world, int conversations, const std::string& name = "talk", size_t prompt_bytes = 0);
  ~Load() { stop(); }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;
  void stop();  // turns under way are waited for

 private:
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> clients_;
};

// Asks for `/` again and again while it lives.
class Prober {
 public:
  explicit Prober(const World& world);
  ~Prober() { stop(); }
  Prober(const Prober&) = delete;
  Prober& operator=(const Prober&) = delete;
  // Asserts that it was asked at least once and that each answer came within the time.
  void expect_within(int ms);

 private:
  void stop();
  const World& world_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> asked_{0};
  std::atomic<int> failed_{0};
  std::atomic<double> slowest_ms_{0};
  std::thread thread_;
};

// What a case measured, for whoever reads the run.
void report(const std::string& sentence);
std::string ms_text(double ms);  // "12 ms"

}  // namespace faults
