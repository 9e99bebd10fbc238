#include "check.hpp"

#include <iostream>
#include <string>

#include "db.hpp"
#include "json_view.hpp"
#include "ollama.hpp"
#include "relay.hpp"
#include "tls.hpp"

namespace {

constexpr auto kOllamaMax = std::chrono::seconds(5);
constexpr int kCertificateDaysLow = 14;

bool report(bool usable, const std::string& what, const std::string& sentence) {
  std::cout << (usable ? "ok    " : "FAIL  ") << what << std::string(15 - what.size(), ' ') << sentence << "\n";
  return usable;
}

bool check_configuration(const Config& config) {
  if (!OllamaAddress::parse(config.ollama)) return report(false, "configuration", std::string("--ollama: ") + kOllamaUrlWanted);
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
  Database database({config.db.empty() ? default_conninfo() : config.db, 1, config.db_timeout});
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

bool check_ollama(const Config& config) {
  const auto address = OllamaAddress::parse(config.ollama);
  if (!address) return report(false, "Ollama", "its address is not known");
  const std::string start_it = ". Start it (sudo systemctl start ollama), or say where it is with --ollama";
  Ollama ollama(*address);
  PlainWaiter waiter;
  const auto generation = ollama.start("GET", "/tags", "");
  const auto event = generation->read_head(waiter, Deadline::after(kOllamaMax));
  if (event != Generation::Event::head) {
    return report(false, "Ollama", config.ollama + " does not answer: " + (generation->detail().empty() ? "no answer in time" : generation->detail()) + start_it);
  }
  const std::string body = read_error(*generation, waiter);
  if (generation->status() != 200 || find_json_problem(body)) return report(false, "Ollama", config.ollama + " answers, but not as Ollama does" + start_it);
  const auto members = json_members(body);
  const JsonMember* models = find_member(members, "models");
  const size_t count = models == nullptr ? 0 : json_elements(models->value).size();
  if (count == 0) return report(false, "Ollama", config.ollama + " has no model. Get one: ollama pull tinyllama");
  return report(true, "Ollama", config.ollama + ", " + std::to_string(count) + (count == 1 ? " model" : " models"));
}

}  // namespace

bool run_check(const Config& config) {
  bool usable = check_configuration(config);
  usable = check_certificate(config) && usable;
  usable = check_database(config) && usable;
  usable = check_ollama(config) && usable;
  return usable;
}
