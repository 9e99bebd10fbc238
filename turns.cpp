#include "turns.hpp"

#include <algorithm>

Result<StreamSlots::Slot, StreamSlots::Full> StreamSlots::take(const std::string& client) {
  const std::lock_guard lock(mutex_);
  if (taken_ >= slots_max_) return Full::server;
  if (per_client_max_ != 0) {
    size_t& of_client = by_client_[client];
    if (of_client >= per_client_max_) return Full::client;
    ++of_client;
  }
  ++taken_;
  return Slot(*this, client);
}

void StreamSlots::give_back(const std::string& client) {
  const std::lock_guard lock(mutex_);
  --taken_;
  if (per_client_max_ == 0) return;
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
