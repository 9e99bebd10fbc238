// Responses as all routes give them: JSON, errors of one key, streams.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "db.hpp"
#include "server.hpp"

/// What the log says of a request whose client did not wait; nobody reads the answer. nginx's number.
constexpr int kClientLeftStatus = 499;

/// 200 with a JSON body.
void reply_json(httplib::Response& response, std::string_view json);

/// An error with the body `{"error":"<sentence>"}` (contract 1.4), with Retry-After if it is a 503. The
/// sentence also goes into the log when `log_reason` is empty; give one when the sentence may hold
/// words that are not chatterd's.
void reply_error(httplib::Response& response, int status, std::string_view sentence, std::string_view log_reason = "");

/// The one place that says what a failure of the database means to a client (contract 3.3).
void reply_failure(httplib::Response& response, const DbFailure& failure);

/// Sends a piece of a stream at once. False: the client is gone.
using SendPiece = std::function<bool(std::string_view)>;

/// 200 with a body that `produce` sends piece by piece, called once, on this thread, after the handler
/// has returned. It returns false when the body is not complete: the connection is then cut without a
/// proper end, which the client notices. An exception counts as false.
void stream_response(httplib::Response& response, const std::string& content_type, std::function<bool(const SendPiece&)> produce);
