#include "turns.hpp"

#include <algorithm>
#include <random>

#include "text.hpp"

namespace {

// Between two looks whether a turn elsewhere is over: soon at first, then as often as costs nothing.
constexpr milliseconds kLookPauseMax{100};

// Up to a quarter shorter, so that those who wait together do not look together.
milliseconds with_jitter(milliseconds pause) {
  static thread_local std::minstd_rand random{std::random_device{}()};
  return pause - pause / 4 * static_cast<int>(random() % 1024) / 1024;
}

}  // namespace

Result<StreamSlots::Slot, StreamSlots::Full> StreamSlots::take(const std::string& client) {
  const std::lock_guard lock(mutex_);
  if (taken_ >= slots_max_) return Full::server;
  // Counted without a limit too: one may be set while the stream runs.
  size_t& of_client = by_client_[client];
  if (per_client_max_ != 0 && of_client >= per_client_max_) return Full::client;
  ++of_client;
  ++taken_;
  return Slot(*this, client);
}

void StreamSlots::set_limits(size_t slots_max, size_t per_client_max) {
  const std::lock_guard lock(mutex_);
  slots_max_ = slots_max;
  per_client_max_ = per_client_max;
}

size_t StreamSlots::taken() {
  const std::lock_guard lock(mutex_);
  return taken_;
}

size_t StreamSlots::most() {
  const std::lock_guard lock(mutex_);
  return slots_max_;
}

void StreamSlots::give_back(const std::string& client) {
  const std::lock_guard lock(mutex_);
  --taken_;
  const auto place = by_client_.find(client);
  if (--place->second == 0) by_client_.erase(place);
}

std::optional<Conversations::Turn> Conversations::enter(const std::string& app_id, milliseconds wait) {
  std::unique_lock lock(mutex_);
  if (closed_) return std::nullopt;
  const auto [place, first] = at_work_.try_emplace(app_id);
  if (first) return Turn(*this, app_id);
  std::deque<Waiting*>& queue = place->second;  // stays while there is anyone in it or at work
  Waiting self;
  queue.push_back(&self);
  if (self.called.wait_for(lock, wait, [&] { return self.has_turn || closed_; }) && self.has_turn) return Turn(*this, app_id);
  std::erase(queue, &self);
  return std::nullopt;
}

void Conversations::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (auto& [app_id, queue] : at_work_) {
    for (Waiting* waiting : queue) waiting->called.notify_one();
  }
}

bool Conversations::closed() {
  const std::lock_guard lock(mutex_);
  return closed_;
}

void Conversations::leave(const std::string& app_id) {
  const std::lock_guard lock(mutex_);
  const auto place = at_work_.find(app_id);
  if (place->second.empty()) {
    at_work_.erase(place);
    return;
  }
  Waiting* next = place->second.front();
  place->second.pop_front();
  next->has_turn = true;
  next->called.notify_one();
}

SharedTurn::SharedTurn(Database& database, std::string app_id) : database_(&database), turn_{std::move(app_id), database.new_turn_id()} {}

// True: the turn may be had now, or the database has failed and will say so. False: it is not to be had.
bool SharedTurn::wait(Conversations& conversations, Waiter& waiter, Deadline deadline, milliseconds& pause) {
  while (true) {
    const auto may_begin = database_->may_begin(turn_);
    if (!may_begin.ok() || may_begin.value()) return true;
    if (deadline.passed()) break;
    const Wake wake = waiter.wait(-1, 0, Deadline::earlier(deadline, Deadline::after(with_jitter(pause))));
    if (wake != Wake::timed_out || conversations.closed()) break;
    pause = std::min(pause * 2, kLookPauseMax);
  }
  database_->give_up(turn_);
  return false;
}
