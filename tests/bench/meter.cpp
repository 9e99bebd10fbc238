#include "tests/bench/meter.hpp"

#include <fstream>
#include <stdexcept>
#include <string>

namespace bench {
namespace {

std::runtime_error no_process(pid_t pid) { return std::runtime_error("there is no process " + std::to_string(pid)); }

}  // namespace

ProcessMeter::ProcessMeter(pid_t pid) : pid_(pid) {
  // In nanoseconds, where /proc/PID/stat counts in hundredths of a second.
  if (clock_getcpuclockid(pid, &cpu_clock_) != 0) throw no_process(pid);
  cpu_at_start_s_ = cpu_now_s();
  sample();
  first_ = last_;
}

double ProcessMeter::cpu_now_s() const {
  timespec time{};
  if (clock_gettime(cpu_clock_, &time) != 0) throw no_process(pid_);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

double ProcessMeter::cpu_s() const { return cpu_now_s() - cpu_at_start_s_; }

void ProcessMeter::sample() {
  std::ifstream status("/proc/" + std::to_string(pid_) + "/status");
  Reading reading;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) reading.rss_mib = std::stod(line.substr(6)) / 1024;  // it is in KiB
    if (line.starts_with("Threads:")) reading.threads = std::stol(line.substr(8));
  }
  if (reading.threads == 0) throw no_process(pid_);
  last_ = reading;
  peak_.rss_mib = std::max(peak_.rss_mib, reading.rss_mib);
  peak_.threads = std::max(peak_.threads, reading.threads);
}

}  // namespace bench
