#include "spool.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "json_view.hpp"
#include "log.hpp"
#include "text.hpp"

namespace {

// Chatterds on one database and one machine; each locks a file of its own.
constexpr int kSharersMax = 64;

std::string line_of(const Reply& reply) {
  std::string line = "{\"reply\":{\"appID\":";
  append_json_string(line, reply.turn.app_id);
  line += ",\"id\":";
  append_json_string(line, reply.turn.id);
  if (reply.place) line += ",\"place\":\"" + std::to_string(*reply.place) + "\"";
  line += ",\"text\":";
  append_json_string(line, reply.text);
  return line + "}}\n";
}

std::optional<std::string> member_text(const std::vector<JsonMember>& members, std::string_view key) {
  const JsonMember* member = find_member(members, key);
  return member == nullptr ? std::nullopt : json_string(member->value);
}

std::optional<Reply> parse_reply(std::string_view json) {
  const auto members = json_members(json);
  const auto app_id = member_text(members, "appID");
  const auto id = member_text(members, "id");
  const auto text = member_text(members, "text");
  if (!app_id || !id || !text) return std::nullopt;
  Reply reply{{*app_id, *id}, *text, std::nullopt};
  if (const auto place = member_text(members, "place")) reply.place = std::strtoll(place->c_str(), nullptr, 10);
  return reply;
}

// FNV-1a: the same name for the same database in every run.
std::string name_for(const std::string& database_name) {
  std::uint64_t hash = 14695981039346656037ULL;
  for (const char c : database_name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  char text[32];
  std::snprintf(text, sizeof text, "replies-%016llx", static_cast<unsigned long long>(hash));
  return text;
}

std::string read_text(int fd) {
  std::string text;
  char buffer[64 * 1024];
  ssize_t count = 0;
  while ((count = ::pread(fd, buffer, sizeof buffer, static_cast<off_t>(text.size()))) > 0) text.append(buffer, static_cast<size_t>(count));
  return text;
}

// Those that wait, of a file's lines. A last line that was torn by a crash was never promised to anyone.
std::vector<Reply> replies_in(std::string_view text) {
  std::vector<Reply> replies;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    at = end + 1;
    if (find_json_problem(line)) continue;
    const auto members = json_members(line);
    if (const auto gone = member_text(members, "gone")) {
      std::erase_if(replies, [&](const Reply& reply) { return reply.turn.id == *gone; });
    } else if (const JsonMember* member = find_member(members, "reply")) {
      if (auto reply = parse_reply(member->value)) replies.push_back(std::move(*reply));
    }
  }
  return replies;
}

}  // namespace

std::string default_state_folder() {
  if (const char* folder = std::getenv("STATE_DIRECTORY"); folder != nullptr && *folder != '\0') return folder;
  if (geteuid() == 0) return "/var/lib/chatterd";
  if (const char* folder = std::getenv("XDG_STATE_HOME"); folder != nullptr && *folder == '/') return std::string(folder) + "/chatterd";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') return std::string(home) + "/.local/state/chatterd";
  return "/var/tmp/chatterd-" + std::to_string(geteuid());
}

std::optional<std::string> Spool::open(const std::string& folder, const std::string& database_name, const std::string& run) {
  auto problem = open_own(folder, database_name);
  if (problem) return problem;
  {
    const std::lock_guard lock(mutex_);
    note_run(number_, run, O_CREAT);
  }
  // Here too, while this may still be root, to whom files of an earlier one belong.
  adopt();
  return std::nullopt;
}

std::optional<std::string> Spool::open_own(const std::string& folder, const std::string& database_name) {
  const std::lock_guard lock(mutex_);
  const auto wrong = [&] { return "--state-dir: " + folder + " can't be used: " + errno_text(errno) + ". Give a folder that this user may write."; };
  std::error_code error;
  const auto mask = ::umask(077);  // conversations are nobody else's business
  std::filesystem::create_directories(folder, error);
  ::umask(mask);
  folder_.reset(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder_) return wrong();
  name_ = name_for(database_name);
  for (number_ = 0; number_ < kSharersMax; ++number_) {
    file_ = open_file(number_, O_CREAT);
    if (!file_) return wrong();
    if (::flock(file_.get(), LOCK_EX | LOCK_NB) == 0) break;
    file_.reset();
  }
  if (!file_) return "--state-dir: " + folder + " is used by too many chatterds.";
  ::fsync(folder_.get());
  read_own();
  return std::nullopt;
}

UniqueFd Spool::open_file(int number, int flags, const char* suffix) const {
  const std::string name = name_ + (number == 0 ? "" : "-" + std::to_string(number)) + suffix;
  return UniqueFd(::openat(folder_.get(), name.c_str(), O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW | flags, 0600));
}

// What an earlier run left.
void Spool::read_own() {
  const std::string text = read_text(file_.get());
  for (Reply& reply : replies_in(text)) waiting_.push_back({std::move(reply), true});
  if (!waiting_.empty()) LogLine(LogLevel::info, "replies_found_in_spool").add("count", waiting_.size());
  torn_ = !text.empty() && !text.ends_with('\n');
}

// Which run has a file stands beside it, in a file of its own: it is replaced by the `next` one. Call it with the
// lock on that file: whoever stands there is over.
void Spool::note_run(int number, const std::string& next, int flags) {
  const UniqueFd file = open_file(number, flags, ".run");
  if (!file) return;
  std::string run = read_text(file.get());
  if (run == next) return;
  if (run.size() == Database::kRunBytes) ended_runs_.push_back(std::move(run));
  if (::ftruncate(file.get(), 0) != 0 || ::write(file.get(), next.data(), next.size()) < 0) {
    LogLine(LogLevel::warning, "spool_write_failed").add("reason", errno_text(errno));
  }
}

std::vector<std::string> Spool::take_ended_runs() {
  const std::lock_guard lock(mutex_);
  return std::exchange(ended_runs_, {});
}

void Spool::adopt() {
  const std::lock_guard lock(mutex_);
  if (!file_) return;
  size_t count = 0;
  for (int number = 0; number < kSharersMax; ++number) {
    const UniqueFd other = number == number_ ? UniqueFd() : open_file(number, 0);
    if (!other || ::flock(other.get(), LOCK_EX | LOCK_NB) != 0) continue;
    note_run(number, "", 0);
    struct stat about {};
    if (::fstat(other.get(), &about) == 0 && about.st_size != 0) count += take_over(other.get());
  }
  if (count != 0) LogLine(LogLevel::info, "replies_found_in_spool").add("count", count);
}

// The other file is emptied when all of it is in this one, and never removed: somebody may just be opening it.
size_t Spool::take_over(int other) {
  size_t count = 0;
  bool written = true;
  for (Reply& reply : replies_in(read_text(other))) {
    const auto is_same = [&](const Waiting& waiting) { return waiting.reply.turn.id == reply.turn.id; };
    if (std::any_of(waiting_.begin(), waiting_.end(), is_same)) continue;
    written = append(line_of(reply), false) && written;
    waiting_.push_back({std::move(reply), true});
    ++count;
  }
  if (!written || ::fdatasync(file_.get()) != 0 || ::ftruncate(other, 0) != 0) {
    LogLine(LogLevel::warning, "spool_not_emptied").add("reason", errno_text(errno));
  }
  return count;
}

bool Spool::append(const std::string& line, bool through) {
  if (!file_) return false;
  // A torn line must not swallow this one.
  std::string behind_torn;
  if (torn_) behind_torn = "\n" + line;
  std::string_view rest = torn_ ? behind_torn : line;
  while (!rest.empty()) {
    const ssize_t count = ::write(file_.get(), rest.data(), rest.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      LogLine(LogLevel::error, "spool_write_failed").add("reason", errno_text(errno));
      return false;
    }
    rest.remove_prefix(static_cast<size_t>(count));
    torn_ = !rest.empty();
  }
  return !through || ::fdatasync(file_.get()) == 0;
}

bool Spool::keep(const Reply& reply) {
  const std::lock_guard lock(mutex_);
  waiting_.push_back({reply, false});
  return append(line_of(reply), true);
}

void Spool::remove(const std::string& id) {
  const std::lock_guard lock(mutex_);
  remove_locked(id);
}

void Spool::remove_locked(const std::string& id) {
  std::erase_if(waiting_, [&](const Waiting& waiting) { return waiting.reply.turn.id == id; });
  if (waiting_.empty()) {
    // Nothing waits: the file begins anew. If this is lost, what comes back is stored already.
    if (file_ && ::ftruncate(file_.get(), 0) == 0) torn_ = false;
  } else {
    append("{\"gone\":\"" + id + "\"}\n", false);
  }
}

void Spool::remove_conversation(const std::string& app_id) {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> ids;
  for (const Waiting& waiting : waiting_) {
    if (waiting.reply.turn.app_id == app_id) ids.push_back(waiting.reply.turn.id);
  }
  for (const std::string& id : ids) remove_locked(id);
}

std::vector<Reply> Spool::orphans() {
  const std::lock_guard lock(mutex_);
  std::vector<Reply> replies;
  for (const Waiting& waiting : waiting_) {
    if (waiting.orphan) replies.push_back(waiting.reply);
  }
  return replies;
}

size_t Spool::waiting() {
  const std::lock_guard lock(mutex_);
  return waiting_.size();
}

void Spool::let_go(const std::string& id) {
  const std::lock_guard lock(mutex_);
  for (Waiting& waiting : waiting_) {
    if (waiting.reply.turn.id == id) waiting.orphan = true;
  }
}
