// The checker of the fault catalogue: clients log what became of each turn, and afterwards the database
// must agree. Every prompt's text is unique, so a row can be told from every other.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "tests/harness/client.hpp"
#include "tests/harness/database.hpp"

namespace faults {

enum class Outcome {
  acknowledged,  // the stream's status 200 arrived: stored exactly once
  refused,       // nothing of it may be stored
  unknown,       // stored at most once
};

// What an answer's head says of the prompt. Refused is every error status but a 503 which says that the
// outcome is not known, and the statuses by which Ollama's refusal is passed on: for those the prompt is
// in the conversation (contract 3.2 stores it before Ollama is asked).
Outcome outcome_of(int status, std::string_view body);

struct Turn {
  std::string prompt;
  Outcome outcome = Outcome::unknown;
  int status = 0;       // 0: none arrived
  double status_ms = 0; // until it arrived, or until it was clear that it doesn't
  // The stream ended cleanly after Ollama's last line, or said that the reply will be stored later: all of
  // the reply has to be there in the end.
  bool reply_due = false;
};

// The turns of all conversations, each in the order in which its client made them. Any thread.
class TurnLog {
 public:
  void add(const std::string& app, Turn turn);
  [[nodiscard]] std::map<std::string, std::vector<Turn>> turns() const;
  [[nodiscard]] size_t count(Outcome outcome) const;
  // Of the turns so far that got an error status.
  [[nodiscard]] size_t count_status(int status) const;
  // The longest wait for a head, of all turns or of those with this status.
  [[nodiscard]] double slowest_ms(int status = -1) const;
  [[nodiscard]] std::string summary() const;

 private:
  size_t count_if(const std::function<bool(const Turn&)>& counts) const;

  mutable std::mutex mutex_;
  std::map<std::string, std::vector<Turn>> turns_;  // guarded by mutex_
};

// Each run of white space made one space (contract 3.11).
std::string compacted(std::string_view text);

// All that Ollama would say to a prompt, before compaction.
using ReplyTo = std::function<std::string(const std::string& prompt)>;

// What contradicts the log, a sentence each. `rows` are (appid, name, message) in the conversations' order.
std::vector<std::string> violations(const TurnLog& log, const std::vector<harness::Row>& rows, const ReplyTo& reply_to);

}  // namespace faults
