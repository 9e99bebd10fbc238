// What a process uses, as the kernel tells it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace harness {

// /proc's view of a process; 0 where it can't be had (the process has gone).
size_t threads_of(pid_t pid);
size_t descriptors_of(pid_t pid);
// Resident memory now, and at most since the start or the last reset, in KiB.
size_t memory_kib(pid_t pid);
// What the former may differ by though nothing more is kept: of a process under load, under ThreadSanitizer too.
constexpr size_t kMemoryNoiseKib = 16 * 1024;
size_t memory_peak_kib(pid_t pid);
void reset_memory_peak(pid_t pid);
// Processor time of all its threads so far, in milliseconds.
double cpu_ms(pid_t pid);
// The names of the threads that are scheduled in real time now, of their own or by priority inheritance, in order.
std::vector<std::string> real_time_threads(pid_t pid);
// Whether it runs with a sanitizer, whose own memory says nothing about the program's.
bool has_sanitizer(pid_t pid);

// What chatterd holds; must come back to what it was.
struct Vitals {
  size_t threads = 0;
  size_t descriptors = 0;
  size_t database_connections = 0;
  [[nodiscard]] bool within(const Vitals& base) const {
    return threads <= base.threads && descriptors <= base.descriptors && database_connections <= base.database_connections;
  }
  [[nodiscard]] std::string text() const;
};

// This process may have as many descriptors as the system lets it.
void raise_descriptor_limit();

}  // namespace harness
