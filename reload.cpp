#include "reload.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "log.hpp"

namespace {

bool is_own(const std::string& variable) { return variable.starts_with("CHATTERD_"); }

std::string joined(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += (all.empty() ? "" : " ") + part;
  return all;
}

const char* look_up(const char* name) { return std::getenv(name); }

// The file that a reload put into the unit's RuntimeDirectory=, or else `otherwise`.
std::string fresh_copy(const std::string& name, const std::string& otherwise) {
  const char* folder = std::getenv("RUNTIME_DIRECTORY");
  if (folder == nullptr || *folder == '\0') return otherwise;
  std::string file = std::string(folder) + "/" + name;
  return ::access(file.c_str(), F_OK) == 0 ? file : otherwise;
}

}  // namespace

Server::Settings server_settings(const Config& config) {
  Server::Settings settings;
  settings.host = config.host;
  settings.port = config.port;
  settings.body_bytes_max = config.max_body;
  settings.body_memory_max = config.body_memory_max();
  settings.connections_max = config.max_connections;
  settings.threads_max = config.threads_max();
  settings.header_timeout = config.header_timeout;
  settings.body_timeout = config.body_timeout;
  settings.idle_timeout = config.idle_timeout;
  settings.write_timeout = config.write_timeout;
  return settings;
}

void adopt_environment(const EnvFile& file) {
  for (const EnvFile::Variable& variable : file.variables) {
    if (is_own(variable.name)) {
      ::unsetenv(variable.name.c_str());
    } else {
      ::setenv(variable.name.c_str(), variable.value.c_str(), 1);
    }
  }
}

void Reloader::reload() {
  std::vector<std::string> problems;
  std::vector<std::string> changed;
  reload_config_into(problems, changed);
  reload_tls(problems);
  reload_api_keys(problems);
  LogLine line(problems.empty() ? LogLevel::info : LogLevel::error, problems.empty() ? "reloaded" : "reload_failed");
  if (!problems.empty()) line.add("reason", joined(problems) + " What was in force stays.");
  if (!changed.empty()) line.add("changed", joined(changed));
}

void Reloader::reload_config_into(std::vector<std::string>& problems, std::vector<std::string>& changed) {
  const auto file = load_env_file(arguments_, look_up);
  if (!file.ok()) return problems.push_back(file.error().line);
  const auto wanted = parse_config(arguments_, look_up, file.value());
  if (!wanted.ok()) return problems.push_back(wanted.error().line + ".");
  Reloaded reloaded = reload_config(*services_.config.get(), wanted.value());
  for (std::string& name : changed_variables(file.value())) reloaded.needs_restart.push_back(std::move(name));
  if (!reloaded.needs_restart.empty()) {
    LogLine(LogLevel::warning, "needs_restart").add("options", joined(reloaded.needs_restart));
  }
  const Config& config = reloaded.config;
  services_.rate.set_rate(config.rate);
  services_.slots.set_limits(config.max_streams, config.streams_per_client);
  services_.database.set_call_timeout(config.db_timeout);
  services_.database.set_history_max(config.max_history);
  server_.set_limits(server_settings(config));
  set_log_level(*log_level_of(config.log_level));
  changed = reloaded.changed;
  services_.config.set(std::move(reloaded.config));
}

void Reloader::reload_tls(std::vector<std::string>& problems) {
  const auto config = services_.config.get();
  if (config->http) return;
  const std::string cert = fresh_copy("chatterd.crt", config->cert);
  const std::string key = fresh_copy("chatterd.key", config->key);
  for (const std::string& file : {cert, key}) {
    if ((file != config->cert && file != config->key) || ::access(file.c_str(), R_OK) == 0 || errno != EACCES) continue;
    LogLine(LogLevel::warning, "certificate_kept").add("reason", file + " can't be read by the user that chatterd serves as: restart it to renew the certificate.");
    return;
  }
  auto context = make_server_context(cert, key);
  if (!context.ok()) return problems.push_back(context.error().sentence);
  LogLine(LogLevel::info, "certificate_read").add("days_left", certificate_days_left(context.value().get()));
  server_.set_tls(std::move(context.value()));
}

void Reloader::reload_api_keys(std::vector<std::string>& problems) {
  const std::string& file = services_.config.get()->api_keys;
  if (file.empty()) return services_.api_keys.clear();
  if (auto problem = services_.api_keys.load(file)) problems.push_back(std::move(*problem));
}

// Those of other programs, such as libpq, that are not what they were at the start.
std::vector<std::string> Reloader::changed_variables(const EnvFile& file) const {
  std::vector<std::string> names;
  const auto compare = [&](const EnvFile& from, const EnvFile& to, bool missing_only) {
    for (const EnvFile::Variable& variable : from.variables) {
      const EnvFile::Variable* other = to.find(variable.name);
      const bool differs = other == nullptr || (!missing_only && other->value != from.find(variable.name)->value);
      if (!is_own(variable.name) && differs) names.push_back(variable.name);
    }
  };
  compare(file, at_start_, false);
  compare(at_start_, file, true);
  return names;
}
