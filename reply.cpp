#include "reply.hpp"

#include <exception>

#include "text.hpp"

namespace {

// A large piece goes out in slices of so much to twice as much: on its way each is copied into a chunk, and into what
// the exchange holds.
constexpr size_t kSliceBytes = 256 * 1024;

}  // namespace

void reply_json(httplib::Response& response, std::string_view json) {
  response.status = 200;
  response.set_content(json.data(), json.size(), "application/json");
}

void reply_error(httplib::Response& response, int status, std::string_view sentence, std::string_view log_reason) {
  std::string json = "{\"error\":";
  append_json_string(json, sentence);
  json += '}';
  response.status = status;
  if (status == 503) response.set_header("Retry-After", kRetryAfterSeconds);
  response.set_content(json, "application/json");
  if (Exchange::current().reason.empty()) Exchange::current().reason = log_reason.empty() ? sentence : log_reason;
}

void reply_failure(httplib::Response& response, const DbFailure& failure) {
  Exchange::current().reason = "database: " + failure.detail;
  switch (failure.fault) {
    case DbFault::refused: return reply_error(response, 400, "The database does not accept a value of this request.");
    case DbFault::unavailable:
      return reply_error(response, 503,
                         failure.outcome_unknown
                             ? "The database did not answer in time: it is not known whether this request's messages were stored."
                             : "The database can't be reached now: nothing of this request was stored; try again.");
    case DbFault::busy:  // reply_not_begun()'s, and the next
    case DbFault::too_long:
    case DbFault::retry:
    case DbFault::failed: break;
  }
  reply_error(response, 500, "The database failed on this request.");
}

void stream_response(httplib::Response& response, const std::string& content_type, std::function<bool(const SendPiece&)> produce) {
  response.status = 200;
  Exchange& exchange = Exchange::current();
  const auto provide = [produce = std::move(produce), &exchange](size_t, httplib::DataSink& sink) {
    const SendPiece send = [&](std::string_view piece) {
      if (piece.empty()) return exchange.flush();  // an empty chunk would end the body
      for (; piece.size() > 2 * kSliceBytes; piece.remove_prefix(kSliceBytes)) {
        if (!sink.write(piece.data(), kSliceBytes) || !exchange.flush()) return false;
      }
      return sink.write(piece.data(), piece.size()) && exchange.flush();
    };
    // An exception that leaves a provider ends the process, in every version of httplib.
    try {
      if (!produce(send)) return false;
    } catch (const std::exception&) {
      exchange.reason = "internal error";
      return false;
    }
    sink.done();
    return true;
  };
  if (exchange.version_1_0()) {
    response.set_content_provider(content_type, provide);
  } else {
    response.set_chunked_content_provider(content_type, provide);
  }
}
