// The routes: from a request to a checked struct, to the database and Ollama, to the response. No SQL
// and no sockets here.
#pragma once

#include <memory>

#include "access.hpp"
#include "config.hpp"
#include "db.hpp"
#include "live.hpp"
#include "ollama.hpp"
#include "server.hpp"
#include "spool.hpp"
#include "turns.hpp"

/// What the routes work with. Any thread; must outlive the server's last request.
struct Services {
  Services(const Config& config_in, Database& database_in, Spool& spool_in, Ollama& ollama_in)
      : config(config_in),
        database(database_in),
        spool(spool_in),
        ollama(ollama_in),
        rate(config_in.rate),
        slots(config_in.max_streams, config_in.streams_per_client) {}

  Live<Config> config;  ///< a request takes it once
  Database& database;
  Spool& spool;
  Ollama& ollama;
  ApiKeys api_keys;
  RateLimit rate;
  StreamSlots slots;
  Conversations conversations;
};

/// Answers a request that did not get its turn in a conversation: 409, or 503 when chatterd is stopping.
void reply_no_turn(Services& services, httplib::Response& response);

/// The same for a request whose turn the database did not begin, for whatever reason.
void reply_not_begun(Services& services, httplib::Response& response, const DbFailure& failure);

/// A slot for a stream to the request's client, or for one that holds a thread as long; without one the request is answered: 503 or 429.
std::optional<StreamSlots::Slot> take_slot(Services& services, httplib::Response& response);

/// Registers all of the contract's routes, and the answers to everything that is none of them.
void register_routes(Server& server, Services& services);
