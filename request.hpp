// The bodies of chatterd's requests, parsed once and checked whole before anything is stored
// (contract 2 and 3.1). Pure functions; any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "result.hpp"

/// The width of the table's appid column, in characters.
constexpr size_t kAppIdCharactersMax = 64;

/// What is wrong with a request, as one sentence for the client that names the field.
struct BadRequest {
  std::string sentence;
};

struct ChatMessage {
  std::string role;
  std::string content;
  std::string json;  ///< the message as the client wrote it, with images, tool_calls and whatever it holds
};

struct ChatRequest {
  std::string app_id;
  std::vector<ChatMessage> messages;
  std::string model_json;   ///< the model's name, as written
  bool stream = true;
  std::string other_fields;  ///< every other field as written, each after a comma: `,"options":{...}`
};

struct PrepRequest {
  std::string app_id;
  std::vector<ChatMessage> messages;
};

struct PostRequest {
  std::string name;
  std::string message;
};

Result<ChatRequest, BadRequest> parse_chat_request(std::string_view body);
Result<PrepRequest, BadRequest> parse_prep_request(std::string_view body);
Result<PostRequest, BadRequest> parse_post_request(std::string_view body);
