#include "tests/harness/vitals.hpp"

#include <sys/resource.h>
#include <unistd.h>

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

}  // namespace

size_t threads_of(pid_t pid) { return entries_of(proc(pid, "task")); }
size_t descriptors_of(pid_t pid) { return entries_of(proc(pid, "fd")); }
size_t memory_kib(pid_t pid) { return status_number(pid, "VmRSS"); }
size_t memory_peak_kib(pid_t pid) { return status_number(pid, "VmHWM"); }
void reset_memory_peak(pid_t pid) { std::ofstream(proc(pid, "clear_refs")) << "5"; }

double cpu_ms(pid_t pid) {
  std::ifstream file(proc(pid, "stat"));
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 2));
  std::string skipped;
  // utime and stime are fields 14 and 15 of proc(5); the state behind the name is field 3.
  for (int field = 3; field < 14; ++field) fields >> skipped;
  double user = 0, system = 0;
  fields >> user >> system;
  return (user + system) * 1000 / static_cast<double>(::sysconf(_SC_CLK_TCK));
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
