// Whether what chatterd needs is usable: asked when somebody wants to know, and now and then while it is not.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "net.hpp"

class Database;
class Ollama;

/// Looks after one service on a thread of its own, so that nobody who asks waits longer than he wants to,
/// whatever the service or a name server does, and so that a hundred who ask at once cause one look.
class Probe {
 public:
  struct Finding {
    bool usable;
    double ms;            ///< that the look took
    std::string problem;  ///< why it is not usable, for the operator
  };

  /// `look` returns what the problem is, or "", within a second or so. While `away` returns true it is
  /// called every few seconds unasked. Both are called between start() and the end of the destructor.
  Probe(std::function<std::string()> look, std::function<bool()> away);
  ~Probe();
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  /// Starts the thread: after root was given up.
  void start();
  /// What a look finds that is under way or begins now, or what one has found just now. Any thread.
  Finding find(Deadline deadline);
  /// Has one begin, unless there was one just now, and does not wait for it. Any thread.
  void ask();

 private:
  void run();
  bool is_fresh() const;

  const std::function<std::string()> look_;
  const std::function<bool()> away_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_:
  bool wanted_ = false;
  bool ending_ = false;
  Finding last_{false, 0, "not looked yet"};
  Clock::time_point found_at_{};
  std::thread thread_;
};

/// The two services. Both must outlive it.
struct Health {
  Health(Database& database_in, Ollama& ollama_in);
  void start();

  Probe database;
  Probe ollama;
};
