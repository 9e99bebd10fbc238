#include "turns.hpp"

#include <algorithm>

std::optional<StreamSlots::Slot> StreamSlots::take() {
  if (taken_.fetch_add(1) >= slots_max_) {
    --taken_;
    return std::nullopt;
  }
  return Slot(*this);
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
