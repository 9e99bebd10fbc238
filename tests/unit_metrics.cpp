// Metrics as Prometheus' text format 0.0.4 has them; docs/operations.md says what each means.
#include "tests/catch.hpp"

#include <map>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "metrics.hpp"

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

namespace {

// Each sample's value by its name with labels.
std::map<std::string, double> samples() {
  std::string text;
  metrics::append_all(text, "1.2.3");
  std::map<std::string, double> all;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("#", 0) == 0) continue;
    const size_t space = line.rfind(' ');
    all[line.substr(0, space)] = std::stod(line.substr(space + 1));
  }
  return all;
}

double value(const std::string& sample) {
  const auto all = samples();
  const auto found = all.find(sample);
  return found == all.end() ? 0 : found->second;
}

}  // namespace

TEST_CASE("a label's value can't end its quotes or its line, whatever it holds", "[metrics]") {
  std::string text;
  metrics::append_sample(text, "m", "label", "a\"b\\c\nd", 1);
  CHECK(text == "m{label=\"a\\\"b\\\\c\\nd\"} 1\n");
}

TEST_CASE("numbers are written so that seconds of the clock and small times keep their digits", "[metrics]") {
  std::string text;
  metrics::append_sample(text, "m", 1795387130.25);
  metrics::append_sample(text, "m", 0.0025);
  metrics::append_sample(text, "m", 9007199254740992.0 / 16);
  CHECK(text == "m 1795387130.25\nm 0.0025\nm 562949953421312\n");
}

TEST_CASE("a histogram's buckets hold all that is below their bounds, and the last holds everything", "[metrics]") {
  const std::string name = "chatterd_request_duration_seconds";
  const auto at = [&](const std::string& bound) { return value(name + "_bucket{route=\"/llmprep/\",le=\"" + bound + "\"}"); };
  const double before = at("+Inf");
  for (const auto took : {nanoseconds(milliseconds(1)), nanoseconds(milliseconds(70)), nanoseconds(std::chrono::hours(1))}) {
    metrics::count_request(metrics::Route::llmprep, 200, took);
  }
  CHECK(at("0.001") == before + 1);  // a bound belongs to its bucket
  CHECK(at("0.05") == before + 1);
  CHECK(at("0.1") == before + 2);
  CHECK(at("900") == before + 2);
  CHECK(at("+Inf") == before + 3);
  CHECK(value(name + "_count{route=\"/llmprep/\"}") == before + 3);
  CHECK(value(name + "_sum{route=\"/llmprep/\"}") >= 3600.071);
}

TEST_CASE("no status, whatever Ollama may send, makes a series of its own", "[metrics]") {
  for (int status = -1; status < 1200; ++status) metrics::count_request(metrics::Route::llmprompt, status, nanoseconds(1));
  size_t series = 0;
  for (const auto& [name, count] : samples()) series += name.rfind("chatterd_requests_total{route=\"/llmprompt/\"", 0) == 0 ? 1 : 0;
  CHECK(series == metrics::kStatuses.size() + 1);
  CHECK(value("chatterd_requests_total{route=\"/llmprompt/\",status=\"418\"}") == 0);
  CHECK(value("chatterd_requests_total{route=\"/llmprompt/\",status=\"431\"}") == 1);
  CHECK(value("chatterd_requests_total{route=\"/llmprompt/\",status=\"other\"}") >= 1000);
}

TEST_CASE("every metric has its help and type before its samples, and its name once", "[metrics]") {
  std::string text;
  metrics::append_all(text, "1.2.3");
  std::set<std::string> announced;
  std::string present;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    CAPTURE(line);
    std::istringstream words(line);
    std::string hash, word, name;
    if (line.rfind("# HELP ", 0) == 0) {
      words >> hash >> word >> present;
      CHECK(announced.insert(present).second);
    } else if (line.rfind("# TYPE ", 0) == 0) {
      words >> hash >> word >> name >> word;
      CHECK(name == present);
    } else {
      CHECK(line.rfind(present, 0) == 0);
    }
  }
  CHECK(text.find("chatterd_build_info{version=\"1.2.3\"} 1\n") != std::string::npos);
  CHECK(announced.count("process_resident_memory_bytes") == 1);
}

TEST_CASE("several threads count at once and nothing is lost", "[metrics]") {
  const auto before = metrics::relayed_lines.value();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int n = 0; n < 10000; ++n) metrics::relayed_lines.add();
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(metrics::relayed_lines.value() == before + 40000);
}

TEST_CASE("the process' own metrics are its own", "[metrics]") {
  CHECK(value("process_resident_memory_bytes") > 1e6);
  CHECK(value("process_open_fds") >= 3);
  CHECK(value("chatterd_threads") >= 1);
  const double now = static_cast<double>(std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count());
  CHECK(value("process_start_time_seconds") <= now + 1);
  CHECK(value("process_start_time_seconds") > now - 86400);
}
