#include "handlers.hpp"

#include <exception>
#include <future>

#include "chat.hpp"
#include "log.hpp"
#include "reply.hpp"
#include "text.hpp"

using httplib::Request;
using httplib::Response;

namespace {

// One page of /getchatts/: a round trip to the database, and some 100 KB in memory, 4 MB at most.
constexpr size_t kPageRows = 1000;
// What is sent at once, but for one large chatt.
constexpr size_t kPieceBytes = 256 * 1024;

void handle_top(Services&, Response& response) { reply_json(response, "\"EECS Reactive chatterd\""); }

void handle_postchatt(Services& services, Response& response) {
  const auto chatt = parse_post_request(Exchange::current().take_body());
  if (!chatt.ok()) return reply_error(response, 422, chatt.error().sentence);
  if (auto failure = services.database.post(chatt.value())) return reply_failure(response, *failure);
  reply_json(response, "{}");
}

// DbFault::busy: the conversation's turn could not be had within `turn_wait`.
std::optional<DbFailure> begin_anew(Services& services, const PrepRequest& prep, milliseconds turn_wait) {
  const Deadline deadline = Deadline::after(turn_wait);
  const auto turn = services.conversations.enter(prep.app_id, turn_wait);
  if (!turn) return DbFailure{DbFault::busy, false, ""};
  SharedTurn shared_turn(services.database, prep.app_id);
  PlainWaiter waiter;  // a client that has ended its side still gets its answer
  auto failure = shared_turn.begin(services.conversations, waiter, deadline,
                                   [&](const Turn& own) { return services.database.replace(own, prep.messages); });
  if (!failure) services.spool.remove_conversation(prep.app_id);
  return failure;
}

void handle_llmprep(Services& services, Response& response) {
  const auto prep = parse_prep_request(Exchange::current().take_body());
  if (!prep.ok()) return reply_error(response, 422, prep.error().sentence);
  auto failure = begin_anew(services, prep.value(), milliseconds(0));
  if (failure && failure->fault == DbFault::busy) {
    // To wait takes a thread for as long as a stream does, so there are not more of both than there may be streams.
    const auto slot = take_slot(services, response);
    if (!slot) return;
    failure = begin_anew(services, prep.value(), services.config.get()->turn_wait);
  }
  if (failure) return reply_not_begun(services, response, *failure);
  reply_json(response, "{}");
}

// /getchatts/ goes from the database to the client a page at a time, so that it takes the same memory
// whatever the table's size, and holds no connection to the database while a slow client reads. While a
// page is written and sent the next one is fetched, on a thread of its own.
class PublicChatts {
 public:
  PublicChatts(Database& database, Rows first_page) : database_(database), page_(std::move(first_page)) { fetch_next(); }

  // The next piece of the JSON array. False: the database failed, and the rest can't be had.
  bool next(std::string& out) {
    while (row_ < page_.size() && out.size() < kPieceBytes) {
      if (!append_row(out)) return false;
    }
    if (row_ < page_.size()) return true;
    if (!next_page_.valid()) {
      out += begun_ ? "]" : "[]";
      ended_ = true;
      return true;
    }
    auto page = next_page_.get();
    if (!page.ok()) return false;
    page_ = std::move(page.value());
    row_ = 0;
    fetch_next();
    return true;
  }
  bool ended() const { return ended_; }

 private:
  // Begins to fetch the page behind the present one, unless that is the last.
  void fetch_next() {
    if (page_.size() < kPageRows) return;
    const size_t last = page_.size() - 1;
    const PageEnd end{page_.integer(last, Database::kPublicTime), page_.integer(last, Database::kPublicSeq)};
    next_page_ = std::async([this, end] { return database_.public_page(end, kPageRows); });
  }

  bool append_row(std::string& out) {
    const size_t row = row_++;
    if (page_.is_null(row, Database::kPublicLarge)) {
      append(out, page_, row, row);
      return true;
    }
    const auto large = database_.public_large(page_.integer(row, Database::kPublicSeq));
    if (large.ok() && large.value().size() == 1) append(out, large.value(), 0, row);
    return large.ok();
  }

  // The chatt in `row` of the page, whose words are in `text_row` of `texts`.
  void append(std::string& out, const Rows& texts, size_t text_row, size_t row) {
    out += begun_ ? ",[" : "[[";
    begun_ = true;
    append_json_string(out, texts.text(text_row, Database::kPublicName));
    append_json_string(out += ',', texts.text(text_row, Database::kPublicMessage));
    // Neither a UUID nor a time has anything to escape.
    out.append(",\"").append(format_uuid(page_.text(row, Database::kPublicId))).append("\",\"");
    if (!page_.is_null(row, Database::kPublicTime)) out += format_timestamp(page_.integer(row, Database::kPublicTime));
    out += "\"]";
  }

  Database& database_;
  Rows page_;
  size_t row_ = 0;  // the next one
  bool begun_ = false;
  bool ended_ = false;
  std::future<Result<Rows, DbFailure>> next_page_;  // the last member: goes, and so ends, first
};

void handle_getchatts(Services& services, Response& response) {
  auto first = services.database.public_page(PageEnd{}, kPageRows);
  if (!first.ok()) return reply_failure(response, first.error());
  auto chatts = std::make_shared<PublicChatts>(services.database, std::move(first.value()));
  stream_response(response, "application/json", [chatts](const SendPiece& send) {
    std::string piece;
    while (!chatts->ended()) {
      piece.clear();
      if (!chatts->next(piece)) {
        Exchange::current().reason = "the database failed in mid-answer";
        return false;
      }
      if (!send(piece)) return false;
    }
    return true;
  });
}

struct Route {
  metrics::Route name;  // its path has one trailing slash; it matches without it too
  std::string_view allow;
  void (*handle)(Services& services, Response& response);

  std::string_view path() const { return metrics::kRoutes[static_cast<size_t>(name)]; }
};

constexpr std::string_view kGet = "GET, HEAD, OPTIONS";
constexpr std::string_view kPost = "POST, OPTIONS";
constexpr Route kRoutes[] = {
    {metrics::Route::top, kGet, handle_top},
    {metrics::Route::llmprompt, kPost, handle_llmprompt},
    {metrics::Route::getchatts, kGet, handle_getchatts},
    {metrics::Route::postchatt, kPost, handle_postchatt},
    {metrics::Route::llmchat, kPost, handle_llmchat},
    {metrics::Route::llmprep, kPost, handle_llmprep},
};

const Route* find_route(std::string_view path) {
  for (const Route& route : kRoutes) {
    if (path == route.path() || path == route.path().substr(0, route.path().size() - 1)) return &route;
  }
  return nullptr;
}

// Answers a request, by its route's handler or with what no handler should see.
void answer(Services& services, const Request& request, Response& response) {
  const Route* route = find_route(request.path);
  Exchange& exchange = Exchange::current();
  if (route != nullptr) exchange.route = route->name;
  const bool open_to_all = route != nullptr && route->name == metrics::Route::top && (request.method == "GET" || request.method == "HEAD");
  if (const auto seconds = services.rate.refuse(client_of(exchange.client()))) {
    exchange.refused_by(metrics::Limit::rate);
    reply_error(response, 429, "Too many requests from this address: slow down.");
    response.set_header("Retry-After", std::to_string(*seconds));
  } else if (!open_to_all && !services.api_keys.allow(exchange.authorization())) {
    reply_error(response, 401, "This server needs an API key: send the header Authorization: Bearer KEY.");
    response.set_header("WWW-Authenticate", "Bearer");
  } else if (route == nullptr) {
    reply_error(response, 404, "There is nothing at this path.");
  } else if (request.method == "OPTIONS") {
    response.status = 204;
    response.set_header("Allow", std::string(route->allow));
  } else if (!is_one_of(request.method, route->allow)) {
    reply_error(response, 405, "This path does not take this method.");
    response.set_header("Allow", std::string(route->allow));
  } else if (exchange.length_missing()) {
    reply_error(response, 411, "The request has neither a Content-Length nor chunks.");
  } else {
    route->handle(services, response);
  }
}

}  // namespace

void reply_no_turn(Services& services, Response& response) {
  if (services.conversations.closed()) return reply_error(response, 503, "The server is being stopped.");
  Exchange::current().refused_by(metrics::Limit::turn_wait);
  reply_error(response, 409, "Another request for this appID is still at work.");
}

void reply_not_begun(Services& services, Response& response, const DbFailure& failure) {
  if (failure.fault == DbFault::busy) return reply_no_turn(services, response);
  if (failure.fault != DbFault::too_long) return reply_failure(response, failure);
  Exchange::current().refused_by(metrics::Limit::max_history);
  reply_error(response, 413, "This conversation has become too long to be sent to Ollama: begin it anew with /llmprep/, or take another appID.");
}

std::optional<StreamSlots::Slot> take_slot(Services& services, Response& response) {
  auto slot = services.slots.take(client_of(Exchange::current().client()));
  if (slot.ok()) return std::move(slot.value());
  if (slot.error() == StreamSlots::Full::client) {
    Exchange::current().refused_by(metrics::Limit::streams_per_client);
    reply_error(response, 429, "Too many answers are being streamed to this address: wait for one to end.");
    response.set_header("Retry-After", kRetryAfterSeconds);
  } else {
    Exchange::current().refused_by(metrics::Limit::max_streams);
    reply_error(response, 503, "Too many answers are being streamed now: try again later.");
  }
  return std::nullopt;
}

void register_routes(Server& server, Services& services) {
  // Before httplib's own routing, which would try the paths one by one as regular expressions and read a body that is
  // not there.
  server.set_pre_routing_handler([&services](const Request& request, Response& response) {
    answer(services, request, response);
    return httplib::Server::HandlerResponse::Handled;
  });
  server.set_exception_handler([](const Request&, Response& response, std::exception_ptr) {
    Exchange::current().reason = "internal error";
    reply_error(response, 500, "The server failed on this request.");
  });
  // httplib's own refusals have no body of their own; a stream must not be touched.
  server.set_error_handler([](const Request&, Response& response) {
    if (response.body.empty() && !Exchange::current().streaming()) reply_error(response, response.status, "The request is malformed.");
  });
  server.answer_at_once("/");
  server.make_ready_by([&services] { services.ollama.connect_ahead(); });
}
