#include "tests/faults/checker.hpp"

#include <algorithm>
#include <sstream>

namespace faults {
namespace {

constexpr size_t kShownChars = 80;

std::string shown(const std::string& text) {
  return "\"" + (text.size() > kShownChars ? text.substr(0, kShownChars) + "..." : text) + "\"";
}

struct Message {
  std::string name;
  std::string text;
};

// Judges one conversation's rows.
class Judge {
 public:
  Judge(const std::string& app, const std::vector<Turn>& turns, const std::vector<Message>& rows, const ReplyTo& reply_to)
      : app_(app), turns_(turns), rows_(rows), reply_to_(reply_to) {}

  std::vector<std::string> run() {
    for (size_t i = 0; i < turns_.size(); ++i) places_[turns_[i].prompt] = i;
    for (size_t row = 0; row < rows_.size(); ++row) {
      if (rows_[row].name == "assistant") judge_reply(row);
      else judge_prompt(row);
    }
    for (const Turn& turn : turns_) judge_turn(turn);
    return std::move(found_);
  }

 private:
  void complain(const std::string& what) { found_.push_back(app_ + ": " + what); }

  void judge_prompt(size_t row) {
    const std::string& text = rows_[row].text;
    ++times_[text];
    const auto place = places_.find(text);
    if (place == places_.end()) return complain("nobody sent " + shown(text));
    if (last_place_ != kNone && place->second <= last_place_) {
      complain("out of order: " + shown(text) + " behind " + shown(turns_[last_place_].prompt));
    }
    last_place_ = place->second;
  }

  void judge_reply(size_t row) {
    if (row == 0 || rows_[row - 1].name == "assistant") {
      return complain("a reply that is not directly behind a prompt: " + shown(rows_[row].text));
    }
    const std::string& prompt = rows_[row - 1].text;
    const std::string whole = compacted(reply_to_(prompt));
    const std::string& reply = rows_[row].text;
    if (reply.empty() || whole.compare(0, reply.size(), reply) != 0) {
      complain("the reply to " + shown(prompt) + " is not what Ollama sent: " + shown(reply));
    }
    if (reply == whole) whole_replies_[prompt] = true;
  }

  void judge_turn(const Turn& turn) {
    const int times = times_[turn.prompt];
    const std::string status = " (status " + std::to_string(turn.status) + ")";
    if (times > 1) complain(shown(turn.prompt) + " is stored " + std::to_string(times) + " times" + status);
    if (turn.outcome == Outcome::acknowledged && times == 0) complain("lost, though acknowledged: " + shown(turn.prompt));
    if (turn.outcome == Outcome::refused && times > 0) complain("stored, though refused" + status + ": " + shown(turn.prompt));
    if (turn.reply_due && !whole_replies_[turn.prompt]) complain("without its whole reply: " + shown(turn.prompt));
  }

  static constexpr size_t kNone = static_cast<size_t>(-1);
  const std::string& app_;
  const std::vector<Turn>& turns_;
  const std::vector<Message>& rows_;
  const ReplyTo& reply_to_;
  std::map<std::string, size_t> places_;
  std::map<std::string, int> times_;
  std::map<std::string, bool> whole_replies_;
  size_t last_place_ = kNone;
  std::vector<std::string> found_;
};

}  // namespace

Outcome outcome_of(int status, std::string_view body) {
  if (status == 200) return Outcome::acknowledged;
  if (status == 0) return Outcome::unknown;
  if (status == 503) {
    const bool stored_nothing = body.find("nothing of this request was stored") != std::string_view::npos ||
                                body.find("being stopped") != std::string_view::npos ||
                                body.find("Too many answers") != std::string_view::npos;
    return stored_nothing ? Outcome::refused : Outcome::unknown;
  }
  const bool from_ollama = status == 502 || (status == 404 && body.find("model") != std::string_view::npos);
  return from_ollama ? Outcome::unknown : Outcome::refused;
}

void TurnLog::add(const std::string& app, Turn turn) {
  const std::lock_guard lock(mutex_);
  turns_[app].push_back(std::move(turn));
}

std::map<std::string, std::vector<Turn>> TurnLog::turns() const {
  const std::lock_guard lock(mutex_);
  return turns_;
}

size_t TurnLog::count_if(const std::function<bool(const Turn&)>& counts) const {
  size_t found = 0;
  const std::lock_guard lock(mutex_);
  for (const auto& [app, turns] : turns_) found += static_cast<size_t>(std::count_if(turns.begin(), turns.end(), counts));
  return found;
}

size_t TurnLog::count(Outcome outcome) const {
  return count_if([outcome](const Turn& turn) { return turn.outcome == outcome; });
}

size_t TurnLog::count_status(int status) const {
  return count_if([status](const Turn& turn) { return turn.status == status; });
}

double TurnLog::slowest_ms(int status) const {
  double slowest = 0;
  const std::lock_guard lock(mutex_);
  for (const auto& [app, turns] : turns_) {
    for (const Turn& turn : turns) {
      if (status < 0 || turn.status == status) slowest = std::max(slowest, turn.status_ms);
    }
  }
  return slowest;
}

std::string TurnLog::summary() const {
  std::map<int, size_t> by_status;
  for (const auto& [app, turns] : turns()) {
    for (const Turn& turn : turns) ++by_status[turn.status];
  }
  std::ostringstream text;
  text << count(Outcome::acknowledged) << " acknowledged, " << count(Outcome::refused) << " refused, "
       << count(Outcome::unknown) << " unknown; statuses";
  for (const auto& [status, times] : by_status) text << " " << status << " x " << times;
  return text.str();
}

std::string compacted(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    if (!space) result += c;
    else if (result.empty() || result.back() != ' ') result += ' ';
  }
  return result;
}

std::vector<std::string> violations(const TurnLog& log, const std::vector<harness::Row>& rows, const ReplyTo& reply_to) {
  std::map<std::string, std::vector<Message>> stored;
  for (const harness::Row& row : rows) stored[row.at(0)].push_back({row.at(1), row.at(2)});
  std::vector<std::string> all;
  auto turns = log.turns();
  for (const auto& [app, messages] : stored) {
    if (turns.find(app) == turns.end()) all.push_back(app + ": a conversation that nobody began");
  }
  for (const auto& [app, made] : turns) {
    for (std::string& what : Judge(app, made, stored[app], reply_to).run()) all.push_back(std::move(what));
  }
  return all;
}

}  // namespace faults
