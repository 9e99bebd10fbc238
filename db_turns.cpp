// Conversations and whose turn it is in them, among all chatterds on one database.
#include <algorithm>
#include <new>
#include <string>

#include "db.hpp"
#include "db_connection.hpp"
#include "db_statements.hpp"
#include "text.hpp"

using namespace db_internal;

namespace {

// How long a turn is held without being renewed: so long a conversation stays blocked when its chatterd is
// killed, which is less than the default --turn-wait, so that who asks again gets an answer. And so long the
// database may be away, or frozen, before another chatterd may begin a turn amid a running one.
constexpr auto kLease = std::chrono::seconds(15);
constexpr const char* kLeaseInterval = "15 s";
// A turn that takes no time outside of its transaction.
constexpr const char* kNoLease = "0";
// A third: two renewals may fail before a turn is lost. Short answers are never renewed.
constexpr auto kRenewEvery = std::chrono::seconds(5);
// Renewals in one transaction: a few milliseconds of the server's time.
constexpr size_t kRenewalsMax = 64;
// After one that found its row locked for a moment.
constexpr auto kRenewAgain = std::chrono::seconds(1);
// Rows that nobody has used for long are deleted this often; it reads the whole, small table.
constexpr auto kForgetEvery = std::chrono::minutes(1);

// One insert for each message from the `first` on, of which the last returns its place: with a row a result takes 3 KB,
// and a body may hold 100,000 messages. `ids` keeps the UUIDs alive while the executions point at them.
void add_inserts(std::vector<Execution>& executions, const std::vector<std::string>& ids, const std::string& app_id,
                 const std::vector<ChatMessage>& messages, size_t first) {
  for (size_t i = first; i < messages.size(); ++i) {
    const StatementIndex insert = i + 1 < messages.size() ? kInsertMore : kInsert;
    executions.push_back({statement(insert), {app_id.c_str(), messages[i].role.c_str(), messages[i].content.c_str(), ids[i].c_str()}});
  }
}

std::vector<std::string> make_uuids(size_t count) {
  std::vector<std::string> ids(count);
  for (std::string& id : ids) id = make_uuid();
  return ids;
}

// As PostgreSQL writes an array.
std::string array_of(const std::vector<std::string>& ids) {
  std::string text = "{";
  for (const std::string& id : ids) text += (text.size() == 1 ? "" : ",") + id;
  return text + "}";
}

}  // namespace

Result<Conversation, DbFailure> Database::append(const Turn& turn, const std::vector<ChatMessage>& messages) {
  std::vector<Execution> executions;
  const std::vector<std::string> ids = make_uuids(messages.size());
  const std::string own = array_of(ids);
  if (messages.empty()) {
    executions.push_back({statement(kTakeTurn), {turn.app_id.c_str(), turn.id.c_str(), kLeaseInterval}});
  } else {
    executions.push_back({statement(kTakeAndInsert),
                          {turn.app_id.c_str(), turn.id.c_str(), kLeaseInterval, messages[0].role.c_str(), messages[0].content.c_str(), ids[0].c_str()}});
    add_inserts(executions, ids, turn.app_id, messages, 1);
  }
  executions.push_back({statement(kHistory), {turn.app_id.c_str(), own.c_str()}});
  auto results = run_together(executions);
  if (!results.ok()) {
    if (results.error().outcome_unknown) hold(turn, /*over=*/true);
    return results.error();
  }
  hold(turn, /*over=*/false);
  std::vector<Rows>& rows = results.value();
  if (rows.back().memory_bytes() > history_bytes_max_) {
    rows.clear();
    return take_back(turn, own);
  }
  Conversation conversation{std::move(rows.back()), std::nullopt};
  // The order counts in twos: the number behind the last prompt's belongs to the reply (schema.sql).
  if (!messages.empty()) conversation.reply_place = rows[messages.size() - 1].integer(0, 0) + 1;
  return conversation;
}

// Ends a turn whose conversation can't be sent, and takes away what it stored: else each try would make it longer.
// To look at the length before storing would cost every turn a second reading of its rows.
DbFailure Database::take_back(const Turn& turn, const std::string& ids) {
  const auto results = run({{statement(kTakeBack), {turn.app_id.c_str(), ids.c_str()}}, {statement(kEndTurn), {turn.app_id.c_str(), turn.id.c_str()}}},
                           call_deadline());
  if (results.ok()) {
    const std::lock_guard lock(turns_mutex_);
    turns_.erase(turn.id);
    return {DbFault::too_long, false, "the conversation is longer than --max-history"};
  }
  hold(turn, /*over=*/true);
  DbFailure failure = results.error();
  failure.outcome_unknown = true;  // the messages may be there
  return failure;
}

std::optional<DbFailure> Database::replace(const Turn& turn, const std::vector<ChatMessage>& messages) {
  // The delete is a statement of its own: it has to see what was committed before the turn was free.
  std::vector<Execution> executions{{statement(kTakeTurn), {turn.app_id.c_str(), turn.id.c_str(), kNoLease}},
                                    {statement(kDelete), {turn.app_id.c_str()}}};
  const std::vector<std::string> ids = make_uuids(messages.size());
  add_inserts(executions, ids, turn.app_id, messages, 0);
  return failure_of(run(executions, call_deadline()));
}

std::string Database::new_turn_id() const { return run_ + make_uuid().substr(kRunBytes); }

std::optional<DbFailure> Database::end_turns_of(const std::string& run_that_is_over) {
  return failure_of(run({{statement(kEndTurnsOf), {run_that_is_over.c_str()}}}, call_deadline()));
}

std::optional<DbFailure> Database::store_reply(const Reply& reply) {
  auto failure = insert_reply(reply);
  if (failure) return failure;
  const std::lock_guard lock(turns_mutex_);
  turns_.erase(reply.turn.id);
  return std::nullopt;
}

std::optional<DbFailure> Database::insert_reply(const Reply& reply) {
  const Turn& turn = reply.turn;
  if (reply.place) {
    const std::string place = std::to_string(*reply.place);
    auto inserted = run_together({{statement(kInsertReply), {turn.app_id.c_str(), turn.id.c_str(), reply.text.c_str(), place.c_str()}}});
    if (!inserted.ok()) return inserted.error();
    if (inserted.value()[0].size() == 1) return std::nullopt;
    // The place is taken, by this reply, stored by a call whose outcome was unknown, or by another; or the
    // prompt is gone.
    auto found = run({{statement(kFindReply), {turn.app_id.c_str(), turn.id.c_str(), place.c_str()}}}, call_deadline());
    if (!found.ok()) return found.error();
    if (found.value()[0].size() == 1) return std::nullopt;
  }
  return failure_of(run({{statement(kAppendReply), {turn.app_id.c_str(), turn.id.c_str(), reply.text.c_str()}}}, call_deadline()));
}

void Database::hold(const Turn& turn, bool over) {
  const std::lock_guard lock(turns_mutex_);
  turns_.insert_or_assign(turn.id, Held{turn.app_id, Clock::now(), over});
}

void Database::end_turn(const Turn& turn) {
  {
    const std::lock_guard lock(turns_mutex_);
    const auto held = turns_.find(turn.id);
    // Over already: the database was away just now, and somebody waits for an answer. keep_turns() does it.
    if (held == turns_.end() || held->second.over) return;
  }
  bool ended = false;
  try {
    ended = run_together({{statement(kEndTurn), {turn.app_id.c_str(), turn.id.c_str()}}}).ok();
  } catch (const std::bad_alloc&) {
    // A destructor calls this. Later, then.
  }
  const std::lock_guard lock(turns_mutex_);
  if (ended) {
    turns_.erase(turn.id);
  } else {
    turns_[turn.id].over = true;
  }
}

Result<bool, DbFailure> Database::may_begin(const Turn& turn) {
  const std::vector<const char*> parameters{turn.app_id.c_str(), turn.id.c_str()};
  auto results = run({{statement(kComeNext), parameters}, {statement(kTurnIsFree), parameters}}, call_deadline());
  if (!results.ok()) return results.error();
  return results.value()[1].size() == 1;
}

void Database::give_up(const Turn& turn) {
  // If it fails there is nothing to do either: its place in the row is over soon.
  static_cast<void>(run({{statement(kGiveUp), {turn.app_id.c_str(), turn.id.c_str()}}}, call_deadline()));
}

// The turns that have something due, at most as many as fit into a transaction, in the order in which it locks them.
std::vector<Database::DueTurn> Database::due_turns(Clock::time_point now) {
  std::vector<DueTurn> due;
  const std::lock_guard lock(turns_mutex_);
  for (auto at = turns_.begin(); at != turns_.end() && due.size() < kRenewalsMax;) {
    const auto& [id, held] = *at;
    if (held.over && held.renewed < now - kLease) {
      at = turns_.erase(at);  // it is over by itself
      continue;
    }
    if (held.over || held.renewed < now - kRenewEvery) due.push_back({{held.app_id, id}, held.over});
    ++at;
  }
  std::sort(due.begin(), due.end(), [](const DueTurn& a, const DueTurn& b) { return a.turn.app_id < b.turn.app_id; });
  return due;
}

void Database::keep_turns() {
  const auto now = Clock::now();
  while (true) {
    const std::vector<DueTurn> due = due_turns(now);
    if (due.empty()) break;
    std::vector<Execution> executions;
    for (const auto& [turn, over] : due) {
      executions.push_back({statement(over ? kEndTurn : kRenewTurn), {turn.app_id.c_str(), turn.id.c_str()}});
      if (!over) executions.back().parameters.push_back(kLeaseInterval);
    }
    const auto results = run(executions, call_deadline());
    if (!results.ok()) return;
    const std::lock_guard lock(turns_mutex_);
    for (size_t i = 0; i < due.size(); ++i) {
      const auto held = turns_.find(due[i].turn.id);
      if (held == turns_.end()) continue;
      held->second.renewed = results.value()[i].size() == 1 ? now : now - kRenewEvery + kRenewAgain;
      if (due[i].over) turns_.erase(held);
    }
  }
  if (now < forget_at_) return;
  forget_at_ = now + kForgetEvery;
  static_cast<void>(run({{statement(kForgetTurns), {}}}, call_deadline()));
}
