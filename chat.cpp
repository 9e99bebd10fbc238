#include "chat.hpp"

#include "log.hpp"
#include "metrics.hpp"
#include "relay.hpp"
#include "reply.hpp"
#include "request.hpp"
#include "sse.hpp"
#include "text.hpp"

using httplib::Response;
using metrics::OllamaError;

namespace {

// Between two tries to store a reply while the database is away.
constexpr auto kStorePause = milliseconds(250);

// The body for Ollama (contract 3.4): the history from the database; the request's own messages as the client
// wrote them, with images and all; every other field unchanged. Both are used up: nobody needs them while
// Ollama loads a model.
std::string build_ollama_body(ChatRequest request, Conversation conversation) {
  const Rows& rows = conversation.rows;
  std::string body;
  body.reserve(rows.memory_bytes());  // a long history is not to be copied each time that this has grown
  body.append("{\"model\":").append(request.model_json).append(",\"messages\":[");
  for (size_t row = 0; row < rows.size(); ++row) {
    body += row == 0 ? "{\"role\":" : ",{\"role\":";
    append_json_string(body, rows.text(row, Conversation::name));
    body += ",\"content\":";
    append_json_string(body, rows.text(row, Conversation::message));
    body += '}';
  }
  for (const ChatMessage& message : request.messages) {
    if (body.back() != '[') body += ',';
    body += message.json;
  }
  body += request.stream ? "],\"stream\":true" : "],\"stream\":false";
  body.append(request.other_fields).append("}");
  return body;
}

// Ollama's status as ours (contract 3.5).
int status_for(int ollama_status) {
  return ollama_status == 400 || ollama_status == 404 || ollama_status == 503 ? ollama_status : 502;
}

void reply_client_left(Response& response) {
  Exchange::current().note_client_left();
  reply_error(response, kClientLeftStatus, "The client left.");
}

void count_failure(OllamaError how) { metrics::ollama_errors[how].add(); }

// Why there is no answer of Ollama's at all.
void reply_no_answer(Response& response, Generation::Event event, const Generation& generation) {
  if (event == Generation::Event::client_left) return reply_client_left(response);
  if (event == Generation::Event::stopping) return reply_error(response, 503, describe(Ending::stopping));
  if (event == Generation::Event::timed_out) {
    count_failure(OllamaError::silent);
    return reply_error(response, 502, describe(Ending::silent));
  }
  count_failure(event == Generation::Event::unreachable ? OllamaError::unreachable : OllamaError::broken);
  reply_error(response, 502, "Ollama can't be reached: it is not running, or not where this server looks for it.", "ollama: " + generation.detail());
}

// Notes for log and metrics the closing words of an answer, which don't go through the relay. `lines_before` them.
void count_last_words(Exchange& exchange, const Framing& framing, long lines_before, const std::string& last_words) {
  exchange.lines = framing.lines();
  if (exchange.lines > 0 && !exchange.has_first_bytes()) exchange.note_first_bytes();  // of stream:false
  metrics::relayed_lines.add(static_cast<std::uint64_t>(exchange.lines - lines_before));
  metrics::relayed_bytes.add(last_words.size());
}

std::optional<OllamaError> error_of(Ending ending, const Generation& generation, const Framing& framing) {
  switch (ending) {
    case Ending::complete: return framing.has_errors() ? std::optional(OllamaError::error_line) : std::nullopt;
    case Ending::broken: return generation.has_head() ? OllamaError::broken : OllamaError::unreachable;
    case Ending::silent: return OllamaError::silent;
    case Ending::too_long: return OllamaError::too_long;
    case Ending::too_large: return OllamaError::too_large;
    case Ending::stopping:
    case Ending::client_left: break;
  }
  return std::nullopt;
}

// Notes for log and metrics how an answer of Ollama's has ended, when not as it should.
void note_ending(Exchange& exchange, Ending ending, const Generation& generation, const Framing& framing) {
  if (ending == Ending::client_left) return exchange.note_client_left();
  const bool refused = generation.status() >= 400;
  const auto error = refused ? OllamaError::status : error_of(ending, generation, framing);
  if (error) count_failure(*error);
  if (refused) {
    exchange.reason = "ollama: status " + std::to_string(generation.status());
  } else if (ending != Ending::complete) {
    exchange.reason = describe(ending);
    if (!generation.detail().empty()) exchange.reason += " ollama: " + generation.detail();
  } else if (error) {
    exchange.reason = "ollama: an error in mid-answer";
  }
}

// How an answer has ended, and what of it is still to be sent.
struct End {
  Ending ending;
  std::string last_words;
  bool told;  // false: they can't say how it ended, so the connection has to be cut

  bool say(const SendPiece& send) const { return last_words.empty() || send(last_words); }
};

// Carries an answer to its end. Nothing: the client had left before it began.
std::optional<End> carry(Relay& relay, Generation& generation, Framing& framing, const SendPiece& send) {
  Exchange& exchange = Exchange::current();
  exchange.lines = 0;
  relay.on_first_bytes([&exchange] { exchange.note_first_bytes(); });
  // Headers wait for the first line, unless there is none yet.
  if (!generation.has_unread() && !send("")) return std::nullopt;
  std::string problem;
  End end{relay.run(generation, framing, problem), "", true};
  if (problem.empty()) problem = describe(end.ending);
  generation.abandon();  // before anything else, so that Ollama stops
  const long lines_before = framing.lines();
  end.told = framing.close(problem, end.last_words);
  count_last_words(exchange, framing, lines_before, end.last_words);
  note_ending(exchange, end.ending, generation, framing);
  return end;
}

// One turn of a conversation, from the commit of its status to the stored reply. It holds the stream's
// slot and the conversation's turn until it goes; the turn among all chatterds ends with the stored reply.
class ChatTurn {
 public:
  ChatTurn(Services& services, std::shared_ptr<const Config> config, StreamSlots::Slot slot, Conversations::Turn turn, SharedTurn shared_turn,
           Reply reply, std::unique_ptr<Generation> generation)
      : services_(services),
        config_(std::move(config)),
        slot_(std::move(slot)),
        turn_(std::move(turn)),
        shared_turn_(std::move(shared_turn)),
        reply_(std::move(reply)),
        generation_(std::move(generation)) {}

  bool run(const SendPiece& send) {
    Relay relay(*config_, Exchange::current(), send);
    SseFraming framing(config_->max_line, config_->keep_whitespace);
    const auto end = carry(relay, *generation_, framing, send);
    if (!end) return false;
    // A client that does not read takes time, which a reply has not when chatterd stops.
    if (end->ending == Ending::stopping) return store(relay, framing, true, send) && end->say(send);
    const bool listening = end->ending != Ending::client_left && end->say(send);
    return store(relay, framing, listening, send) && listening;
  }

 private:
  // Stores the reply, trying again while the database is away. False: the client is gone.
  bool store(Relay& relay, const SseFraming& framing, bool listening, const SendPiece& send) {
    reply_.text = framing.reply();
    if (reply_.text.empty()) return true;
    auto failure = services_.database.store_reply(reply_);
    if (!failure) {
      metrics::replies_stored.add();
      return true;
    }
    metrics::replies_retried.add();
    bool kept = false;
    if (failure->fault == DbFault::unavailable) {
      // First of all it must outlive this process.
      kept = services_.spool.keep(reply_);
      failure = store_again(relay, framing, listening, *failure);
      if (!failure) {
        services_.spool.remove(reply_.turn.id);
        metrics::replies_stored.add();
        return true;
      }
      services_.spool.let_go(reply_.turn.id);
    }
    (kept ? metrics::replies_spooled : metrics::replies_lost).add();
    LogLine(kept ? LogLevel::warning : LogLevel::error, kept ? "reply_spooled" : "reply_not_stored")
        .add("id", Exchange::current().id())
        .add("reason", failure->detail);
    Exchange::current().reason = "database: " + failure->detail;
    std::string words;
    append_sse_error(words, kept ? "The database is away: the reply will be in the conversation when it is back."
                                 : "The reply could not be stored: it will be missing from the conversation.");
    return !listening || send(words);
  }

  std::optional<DbFailure> store_again(Relay& relay, const SseFraming& framing, bool& listening, DbFailure failure) {
    const Deadline give_up = Deadline::after(config_->store_retry);
    while (failure.fault == DbFault::unavailable && !give_up.passed()) {
      const Wake wake = listening ? relay.idle(kStorePause, framing) : Exchange::current().wait_without_client(Deadline::after(kStorePause));
      if (wake == Wake::client_left) listening = false;
      if (wake == Wake::stopping) break;
      const auto again = services_.database.store_reply(reply_);
      if (!again) return std::nullopt;
      failure = *again;
    }
    return failure;
  }

  Services& services_;
  const std::shared_ptr<const Config> config_;
  StreamSlots::Slot slot_;
  Conversations::Turn turn_;
  SharedTurn shared_turn_;
  Reply reply_;
  std::unique_ptr<Generation> generation_;
};

}  // namespace

void handle_llmchat(Services& services, Response& response) {
  Exchange& exchange = Exchange::current();
  auto chat = parse_chat_request(exchange.take_body());
  if (!chat.ok()) return reply_error(response, 422, chat.error().sentence);
  auto slot = take_slot(services, response);
  if (!slot) return;
  const auto config = services.config.get();
  const std::string app_id = chat.value().app_id;  // it outlasts the request's text
  const Deadline turn_wait = Deadline::after(config->turn_wait);
  auto turn = services.conversations.enter(app_id, config->turn_wait);
  if (!turn) return reply_no_turn(services, response);

  exchange.begin_stream();
  // A client that left while it waited for its turn gets nothing stored in its name.
  if (exchange.client_left()) return reply_client_left(response);
  SharedTurn shared_turn(services.database, app_id);
  auto conversation = shared_turn.begin(services.conversations, exchange, turn_wait,
                                        [&](const Turn& own) { return services.database.append(own, chat.value().messages); });
  if (!conversation.ok() && conversation.error().fault == DbFault::busy && exchange.client_left()) {
    return reply_client_left(response);
  }
  if (!conversation.ok()) return reply_not_begun(services, response, conversation.error());

  exchange.note_asked();
  const auto reply_place = conversation.value().reply_place;
  auto generation = services.ollama.start("POST", "/chat", build_ollama_body(std::move(chat.value()), std::move(conversation.value())));
  const auto event = generation->read_head(exchange, Deadline::after(config->ollama_grace));
  if (event == Generation::Event::head && generation->status() >= 400) {
    const int status = generation->status();
    count_failure(OllamaError::status);
    return reply_error(response, status_for(status), error_text(status, read_error(*generation, exchange)), "ollama: status " + std::to_string(status));
  }
  // After the grace the stream begins all the same: a model may be loading (contract 3.5).
  if (event != Generation::Event::head && event != Generation::Event::timed_out) return reply_no_answer(response, event, *generation);

  response.set_header("Cache-Control", "no-cache");
  response.set_header("X-Accel-Buffering", "no");
  Reply reply{shared_turn.turn(), "", reply_place};
  const auto chat_turn = std::make_shared<ChatTurn>(services, config, std::move(*slot), std::move(*turn), std::move(shared_turn), std::move(reply),
                                                    std::move(generation));
  stream_response(response, "text/event-stream", [chat_turn](const SendPiece& send) { return chat_turn->run(send); });
}

void handle_llmprompt(Services& services, Response& response) {
  auto slot = take_slot(services, response);
  if (!slot) return;
  Exchange& exchange = Exchange::current();
  exchange.begin_stream();
  const auto config = services.config.get();
  exchange.note_asked();
  auto generation = services.ollama.start("POST", "/generate", exchange.take_body());
  const auto event = generation->read_head(exchange, Deadline::after(config->ollama_timeout));
  if (event != Generation::Event::head) return reply_no_answer(response, event, *generation);

  struct Answer {
    StreamSlots::Slot slot;
    std::unique_ptr<Generation> generation;
  };
  const int status = generation->status();
  const std::string content_type = generation->content_type().empty() ? "application/octet-stream" : generation->content_type();
  const auto answer = std::make_shared<Answer>(Answer{std::move(*slot), std::move(generation)});
  stream_response(response, content_type, [config, answer, content_type](const SendPiece& send) {
    Relay relay(*config, Exchange::current(), send);
    RawFraming framing(content_type.starts_with("application/x-ndjson"));
    const auto end = carry(relay, *answer->generation, framing, send);
    if (!end || end->ending == Ending::client_left) return false;
    return end->say(send) && end->told;
  });
  response.status = status;
}
