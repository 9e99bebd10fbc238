#include "metrics.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

namespace metrics {
namespace {

// The last is for every other status.
using ByStatus = std::array<Counter, kStatuses.size() + 1>;
std::array<ByStatus, kRoutes.size()> requests;
std::array<Histogram, kRoutes.size()> request_durations;
Histogram chat_first_token;
Histogram prompt_first_token;
Histogram ollama_first_token;

std::string number_text(double value) {
  char text[40];
  // Whole numbers in full; of others what is needed to read the same double again would be noise.
  std::snprintf(text, sizeof text, value == std::floor(value) && std::abs(value) < 1e15 ? "%.0f" : "%.12g", value);
  return text;
}

// "name" or {label="value"} of a sample; an empty label for none.
std::string label_text(std::string_view label, std::string_view value) {
  if (label.empty()) return "";
  std::string text(label);
  text += "=\"";
  for (const char c : value) {
    if (c == '\\' || c == '"') text += '\\';
    if (c == '\n') {
      text += "\\n";
    } else {
      text += c;
    }
  }
  return text + '"';
}

void append_line(std::string& out, std::string_view name, std::string_view labels, double value) {
  out += name;
  if (!labels.empty()) out.append("{").append(labels).append("}");
  out.append(" ").append(number_text(value)).append("\n");
}

void append_plain(std::string& out, std::string_view name, Type type, std::string_view help, double value) {
  append_head(out, name, type, help);
  append_sample(out, name, value);
}

void append_counter(std::string& out, std::string_view name, std::string_view help, const Counter& counter) {
  append_plain(out, name, Type::counter, help, static_cast<double>(counter.value()));
}

template <class Label, size_t N>
void append_counters(std::string& out, std::string_view name, std::string_view help, std::string_view label,
                     const std::array<std::string_view, N>& values, const Counters<Label, N>& counters) {
  append_head(out, name, Type::counter, help);
  for (size_t i = 0; i < N; ++i) append_sample(out, name, label, values[i], static_cast<double>(counters.all()[i].value()));
}

void append_histogram(std::string& out, const std::string& name, const std::string& labels, const Histogram& histogram) {
  const std::string prefix = labels.empty() ? "" : labels + ",";
  std::uint64_t count = 0;
  for (size_t i = 0; i <= Histogram::kBoundsSeconds.size(); ++i) {
    count += histogram.in_bucket(i);
    const bool last = i == Histogram::kBoundsSeconds.size();
    const std::string bound = last ? "+Inf" : number_text(Histogram::kBoundsSeconds[i]);
    append_line(out, name + "_bucket", prefix + label_text("le", bound), static_cast<double>(count));
  }
  append_line(out, name + "_sum", labels, histogram.sum_seconds());
  append_line(out, name + "_count", labels, static_cast<double>(count));
}

void append_requests(std::string& out) {
  const std::string_view total = "chatterd_requests_total";
  append_head(out, total, Type::counter, "Requests answered; 499: the client did not wait for the answer.");
  for (size_t route = 0; route < kRoutes.size(); ++route) {
    for (size_t i = 0; i <= kStatuses.size(); ++i) {
      const std::uint64_t count = requests[route][i].value();
      const bool known = i < kStatuses.size();
      // Most pairs never happen; a route's 200 and 503 are there from the start, for rates to begin at 0.
      if (count == 0 && !(known && (kStatuses[i] == 200 || kStatuses[i] == 503))) continue;
      const std::string labels = label_text("route", kRoutes[route]) + "," + label_text("status", known ? std::to_string(kStatuses[i]) : "other");
      append_line(out, total, labels, static_cast<double>(count));
    }
  }
  const std::string duration = "chatterd_request_duration_seconds";
  append_head(out, duration, Type::histogram, "From a request's arrival to the end of its answer, streams included.");
  for (size_t route = 0; route < kRoutes.size(); ++route) append_histogram(out, duration, label_text("route", kRoutes[route]), request_durations[route]);
}

void append_first_tokens(std::string& out) {
  const std::string first = "chatterd_time_to_first_token_seconds";
  append_head(out, first, Type::histogram, "From a request's arrival to the first bytes of its streamed answer.");
  append_histogram(out, first, label_text("route", kRoutes[static_cast<size_t>(Route::llmchat)]), chat_first_token);
  append_histogram(out, first, label_text("route", kRoutes[static_cast<size_t>(Route::llmprompt)]), prompt_first_token);
  const std::string ollama = "chatterd_ollama_first_token_seconds";
  append_head(out, ollama, Type::histogram, "From asking Ollama to the first bytes of its answer.");
  append_histogram(out, ollama, "", ollama_first_token);
}

// proc(5): the fields of /proc/self/stat behind the name, which may hold anything; the first is field 3.
std::array<double, 22> read_stat() {
  std::string text;
  std::getline(std::ifstream("/proc/self/stat"), text);
  std::istringstream fields(text.substr(std::min(text.rfind(')') + 2, text.size())));
  std::array<double, 22> values{};
  std::string skipped;
  fields >> skipped;  // the state is a letter
  for (size_t i = 1; i < values.size(); ++i) fields >> values[i];
  return values;
}

double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

double open_descriptors() {
  std::error_code error;
  double count = -1;  // the one that reads the folder
  for (std::filesystem::directory_iterator entry("/proc/self/fd", error), end; !error && entry != end; entry.increment(error)) ++count;
  return std::max(0.0, count);
}

// The names that every client library of Prometheus uses.
void append_process(std::string& out) {
  const auto stat = read_stat();
  const auto field = [&](size_t number) { return stat[number - 3]; };
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  // Its start is given since the machine's; /proc/stat, which has that as a date, is hidden from a hardened service.
  const double started = seconds_of(CLOCK_REALTIME) - (seconds_of(CLOCK_BOOTTIME) - field(22) / ticks);
  rlimit descriptors{};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  append_plain(out, "process_cpu_seconds_total", Type::counter, "User and system CPU time.", seconds_of(CLOCK_PROCESS_CPUTIME_ID));
  append_plain(out, "process_start_time_seconds", Type::gauge, "When the process was started, since 1970-01-01 UTC.", std::floor(started * ticks) / ticks);
  append_plain(out, "process_virtual_memory_bytes", Type::gauge, "Virtual memory.", field(23));
  append_plain(out, "process_resident_memory_bytes", Type::gauge, "Resident memory.", field(24) * static_cast<double>(sysconf(_SC_PAGESIZE)));
  append_plain(out, "process_open_fds", Type::gauge, "Open file descriptors.", open_descriptors());
  append_plain(out, "process_max_fds", Type::gauge, "The most file descriptors that may be open.", static_cast<double>(descriptors.rlim_cur));
  append_plain(out, "chatterd_threads", Type::gauge, "Threads of the process.", field(20));
}

}  // namespace

std::string_view name_of(Limit limit) { return kLimits[static_cast<size_t>(limit)]; }

void Histogram::observe(std::chrono::nanoseconds took) {
  const double seconds = std::chrono::duration<double>(took).count();
  const auto bound = std::lower_bound(kBoundsSeconds.begin(), kBoundsSeconds.end(), seconds);
  buckets_[static_cast<size_t>(bound - kBoundsSeconds.begin())].add();
  sum_ns_.add(static_cast<std::uint64_t>(std::max<std::int64_t>(0, took.count())));
}

void count_request(Route route, int status, std::chrono::nanoseconds took) {
  const size_t index = static_cast<size_t>(route);
  const auto known = std::lower_bound(kStatuses.begin(), kStatuses.end(), status);
  const bool other = known == kStatuses.end() || *known != status;
  requests[index][other ? kStatuses.size() : static_cast<size_t>(known - kStatuses.begin())].add();
  request_durations[index].observe(took);
}

void count_first_token(Route route, std::chrono::nanoseconds after_request, std::chrono::nanoseconds after_asking) {
  (route == Route::llmchat ? chat_first_token : prompt_first_token).observe(after_request);
  ollama_first_token.observe(after_asking);
}

void append_head(std::string& out, std::string_view name, Type type, std::string_view help) {
  static constexpr std::string_view kTypes[] = {"counter", "gauge", "histogram"};
  out.append("# HELP ").append(name).append(" ").append(help).append("\n# TYPE ").append(name).append(" ");
  out.append(kTypes[static_cast<size_t>(type)]).append("\n");
}

void append_sample(std::string& out, std::string_view name, double value) { append_line(out, name, "", value); }

void append_sample(std::string& out, std::string_view name, std::string_view label, std::string_view label_value, double value) {
  append_line(out, name, label_text(label, label_value), value);
}

void append_all(std::string& out, std::string_view version) {
  append_head(out, "chatterd_build_info", Type::gauge, "Always 1; the label says which chatterd this is.");
  append_sample(out, "chatterd_build_info", "version", version, 1);
  append_requests(out);
  append_first_tokens(out);
  append_counters(out, "chatterd_refused_total", "Requests and connections that a limit refused, by the option that sets it.", "limit", kLimits, refused);
  append_counter(out, "chatterd_relayed_lines_total", "Lines of Ollama's answers that were passed on.", relayed_lines);
  append_counter(out, "chatterd_relayed_bytes_total", "Bytes of streamed answers sent to clients, before TLS.", relayed_bytes);
  append_counters(out, "chatterd_ollama_errors_total", "Answers of Ollama that failed, by how.", "kind", kOllamaErrors, ollama_errors);
  append_plain(out, "chatterd_ollama_up", Type::gauge, "Whether Ollama, or one of several, answered when it was last looked at.", ollama_up.value());
  append_counters(out, "chatterd_database_errors_total", "Calls to the database that failed, by how.", "kind", kDatabaseErrors, database_errors);
  append_head(out, "chatterd_database_call_duration_seconds", Type::histogram, "Calls to the database, with the wait for a connection.");
  append_histogram(out, "chatterd_database_call_duration_seconds", "", database_call);
  append_plain(out, "chatterd_database_up", Type::gauge, "Whether the database answered when it was last asked.", database_up.value());
  append_counter(out, "chatterd_replies_stored_total", "Replies stored in the database.", replies_stored);
  append_counter(out, "chatterd_replies_retried_total", "Replies that could not be stored at the first try.", replies_retried);
  append_counter(out, "chatterd_replies_spooled_total", "Replies left in the state folder until the database is back.", replies_spooled);
  append_counter(out, "chatterd_replies_lost_total", "Replies that could be neither stored nor kept.", replies_lost);
  if (const double end = certificate_ends_at.value(); end != 0) {
    append_plain(out, "chatterd_certificate_expiry_timestamp_seconds", Type::gauge, "When the certificate ends, since 1970-01-01 UTC.", end);
  }
  append_process(out);
}

}  // namespace metrics
