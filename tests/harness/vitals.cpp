#include "tests/harness/vitals.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace harness {
namespace {

std::string proc(pid_t pid, const char* what) { return "/proc/" + std::to_string(pid) + "/" + what; }

size_t entries_of(const std::string& folder) {
  std::error_code gone;
  size_t count = 0;
  for (std::filesystem::directory_iterator at(folder, gone), end; !gone && at != end; at.increment(gone)) ++count;
  return count;
}

// The number behind "KEY:" in /proc/PID/status.
size_t status_number(pid_t pid, const std::string& key) {
  std::ifstream file(proc(pid, "status"));
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key + ":", 0) == 0) return std::stoul(line.substr(key.size() + 1));
  }
  return 0;
}

// A stat file of proc_pid_stat(5) from the field of this number on, which is one behind the name; empty if it has gone.
std::istringstream stat_from(const std::string& path, int first) {
  std::ifstream file(path);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return {};
  std::istringstream fields(text.substr(name_end + 2));
  std::string skipped;
  for (int field = 3; field < first; ++field) fields >> skipped;
  return fields;
}

}  // namespace

size_t threads_of(pid_t pid) { return entries_of(proc(pid, "task")); }
size_t descriptors_of(pid_t pid) { return entries_of(proc(pid, "fd")); }
size_t memory_kib(pid_t pid) { return status_number(pid, "VmRSS"); }
size_t memory_peak_kib(pid_t pid) { return status_number(pid, "VmHWM"); }
void reset_memory_peak(pid_t pid) { std::ofstream(proc(pid, "clear_refs")) << "5"; }

double cpu_ms(pid_t pid) {
  double user = 0, system = 0;
  stat_from(proc(pid, "stat"), 14) >> user >> system;  // utime and stime
  return (user + system) * 1000 / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

std::vector<std::string> real_time_threads(pid_t pid) {
  std::vector<std::string> names;
  std::error_code gone;
  for (std::filesystem::directory_iterator at(proc(pid, "task"), gone), end; !gone && at != end; at.increment(gone)) {
    int priority = 0;
    stat_from(at->path() / "stat", 18) >> priority;
    if (priority < 0) std::getline(std::ifstream(at->path() / "comm"), names.emplace_back());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool has_sanitizer(pid_t pid) {
  std::ifstream file(proc(pid, "maps"));
  for (std::string line; std::getline(file, line);) {
    if (line.find("/libasan") != std::string::npos || line.find("/libtsan") != std::string::npos) return true;
  }
  return false;
}

std::string Vitals::text() const {
  return std::to_string(threads) + " threads, " + std::to_string(descriptors) + " descriptors, " +
         std::to_string(database_connections) + " database connections";
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace harness
