// SIGHUP: what may change without a restart is read again: --env-file and the limits in it, certificate and key, API
// keys. No stream and no connection is touched; each request goes on with what it began with.
#pragma once

#include <string>
#include <vector>

#include "db.hpp"
#include "handlers.hpp"
#include "server.hpp"

/// The server's part of a configuration.
Server::Settings server_settings(const Config& config);

/// Used by one thread, between the server's start and its stop.
class Reloader {
 public:
  /// `arguments` are the command line's; `at_start` is the file's content of then, whose variables that are none of
  /// chatterd's own (PGPASSWORD, ...) went into the environment.
  Reloader(std::vector<std::string> arguments, EnvFile at_start, Services& services, Server& server)
      : arguments_(std::move(arguments)), at_start_(std::move(at_start)), services_(services), server_(server) {}

  /// Each of the three parts is taken over whole or, when something in it is wrong, not at all. Ends with one line
  /// in the log, when everything is in force: `reloaded`, or `reload_failed` with a sentence for each part that
  /// stayed as it was. Options that need a restart are named in a warning.
  ///
  /// Where systemd's RUNTIME_DIRECTORY holds chatterd.crt or chatterd.key, these are read in place of --cert and
  /// --key: a key that came by LoadCredential= is not renewed by a reload, so the unit's ExecReload=+ puts fresh
  /// copies there before it sends the signal. At a start they are not looked at: systemd has then emptied that
  /// folder and read the credentials anew. Of --cert and --key themselves, files that only root may read stay as they
  /// are, with a warning, when chatterd has given root up: nothing is wrong with them.
  void reload();

 private:
  void reload_config_into(std::vector<std::string>& problems, std::vector<std::string>& changed);
  void reload_tls(std::vector<std::string>& problems);
  void reload_api_keys(std::vector<std::string>& problems);
  std::vector<std::string> changed_variables(const EnvFile& file) const;

  const std::vector<std::string> arguments_;
  const EnvFile at_start_;
  Services& services_;
  Server& server_;
};

/// At the start: the file's variables that are chatterd's own leave the environment, so that a line which goes from the
/// file later has its default again; the others (PGPASSWORD, ...) are put there. Call it before any thread is started.
void adopt_environment(const EnvFile& file);
