// The routes: from a request to a checked struct, to the database and Ollama, to the response. No SQL
// and no sockets here.
#pragma once

#include <memory>

#include "config.hpp"
#include "db.hpp"
#include "ollama.hpp"
#include "server.hpp"
#include "turns.hpp"

/// What the routes work with. Any thread; must outlive the server's last request.
struct Services {
  Services(const Config& config_in, Database& database_in, Ollama& ollama_in)
      : config(config_in), database(database_in), ollama(ollama_in), slots(config_in.max_streams) {}

  const Config& config;
  Database& database;
  Ollama& ollama;
  StreamSlots slots;
  Conversations conversations;
};

/// Answers a request that did not get its turn in a conversation: 409, or 503 when chatterd is stopping.
void reply_no_turn(Services& services, httplib::Response& response);

/// Registers all of the contract's routes, and the answers to everything that is none of them.
void register_routes(Server& server, Services& services);
