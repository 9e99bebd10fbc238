#include "check.hpp"

#include <iostream>
#include <string>
#include <utility>

#include "access.hpp"
#include "db.hpp"
#include "json_view.hpp"
#include "ollama.hpp"
#include "tls.hpp"

namespace {

constexpr auto kOllamaMax = std::chrono::seconds(5);
constexpr size_t kModelsBytesMax = 4 * 1024 * 1024;  // of the list of models: some 400 bytes each
constexpr int kCertificateDaysLow = 14;

bool report(bool usable, const std::string& what, const std::string& sentence) {
  std::cout << (usable ? "ok    " : "FAIL  ") << what << std::string(15 - what.size(), ' ') << sentence << "\n";
  return usable;
}

bool check_configuration(const Config& config) {
  const auto addresses = OllamaAddress::parse_list(config.ollama);
  if (!addresses.ok()) return report(false, "configuration", "--ollama: " + addresses.error());
  if (ApiKeys keys; !config.api_keys.empty()) {
    if (const auto problem = keys.load(config.api_keys)) return report(false, "configuration", *problem);
  }
  return report(true, "configuration", "port " + std::to_string(config.port) + (config.http ? ", plain HTTP" : ", HTTPS"));
}

bool check_certificate(const Config& config) {
  if (config.http) return report(true, "certificate", "not needed with --http");
  const auto context = make_server_context(config.cert, config.key);
  if (!context.ok()) return report(false, "certificate", context.error().sentence);
  const int days = certificate_days_left(context.value().get());
  if (days < 0) return report(false, "certificate", config.cert + " has expired. Make a new one: scripts/make-cert.sh, or certbot renew");
  const std::string when = config.cert + ", valid for " + std::to_string(days) + " more days";
  return report(true, "certificate", days < kCertificateDaysLow ? when + ": renew it soon" : when);
}

bool check_database(const Config& config) {
  Database database({config.db.empty() ? default_conninfo() : config.db, 1, config.db_timeout, config.max_history});
  const TableState state = database.look();
  if (state.reachable.empty()) {
    report(true, "database", "answers");
  } else {
    report(false, "database", state.reachable + ". Start it (sudo systemctl start postgresql), make role and database (scripts/setup-db.sh), or give another --db");
    return report(false, "table", "can't be looked at without the database");
  }
  if (!state.obstacle.empty()) return report(false, "table", state.obstacle);
  return report(true, "table", state.up_to_date ? "chatts is up to date" : "chatts will be made or brought up to date at start");
}

bool check_ollama(Ollama& ollama, size_t address, const std::string& url) {
  const std::string start_it = ". Start it (sudo systemctl start ollama), or say where it is with --ollama";
  PlainWaiter waiter;
  const auto generation = ollama.start_at(address, "GET", "/tags", "");
  const auto event = generation->read_head(waiter, Deadline::after(kOllamaMax));
  if (event != Generation::Event::head) {
    return report(false, "Ollama", url + " does not answer: " + (generation->detail().empty() ? "no answer in time" : generation->detail()) + start_it);
  }
  const std::string body = generation->read_small(waiter, Deadline::after(kOllamaMax), kModelsBytesMax);
  if (generation->status() != 200 || find_json_problem(body)) return report(false, "Ollama", url + " answers, but not as Ollama does" + start_it);
  const auto members = json_members(body);
  const JsonMember* models = find_member(members, "models");
  const size_t count = models == nullptr ? 0 : json_elements(models->value).size();
  if (count == 0) return report(false, "Ollama", url + " has no model. Get one: ollama pull gemma3:270m");
  return report(true, "Ollama", url + ", " + std::to_string(count) + (count == 1 ? " model" : " models"));
}

// A line for each address: chatterd can do without one of several, but who named it wants it.
bool check_ollamas(const Config& config) {
  auto addresses = OllamaAddress::parse_list(config.ollama);
  if (!addresses.ok()) return report(false, "Ollama", "its address is not known");
  Ollama ollama(std::move(addresses.value()));
  const auto states = ollama.addresses();
  bool usable = true;
  for (size_t i = 0; i < states.size(); ++i) usable = check_ollama(ollama, i, states[i].url) && usable;
  return usable;
}

}  // namespace

bool run_check(const Config& config) {
  bool usable = check_configuration(config);
  usable = check_certificate(config) && usable;
  usable = check_database(config) && usable;
  usable = check_ollamas(config) && usable;
  return usable;
}
