// Fuzz target: a request's body (contract 3.1, 3.4). The input is the body. nlohmann's DOM says what each
// parser has to make of it.
#include "request.hpp"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "tests/fuzz/fuzz.hpp"
#include "tests/fuzz/reference.hpp"

namespace fuzz {
namespace {

using nlohmann::json;

// All sentences there are, with # for each number: what is none of these could quote the client's bytes.
// A new one belongs here once it is sure that it does not.
constexpr std::string_view kSentences[] = {
    "The request's body is not valid JSON in UTF-# near byte #.",
    "The request's body is nested deeper than # levels.",
    "The request's body contains the character U+#, which can't be stored.",
    "The request's body is not a JSON object.",
    "appID is missing.",
    "appID is not a string.",
    "appID is empty.",
    "appID is longer than # characters.",
    "model is missing.",
    "model is not a string.",
    "model is empty.",
    "messages is not an array.",
    "messages[#] is not an object.",
    "messages[#].role is missing.",
    "messages[#].role is not a string.",
    "messages[#].role is empty.",
    "messages[#].content is missing.",
    "messages[#].content is not a string.",
    "stream is not a boolean.",
    "name is missing.",
    "name is not a string.",
    "username is not a string.",
    "message is missing.",
    "message is not a string.",
};

void check_sentence(const std::string& sentence) {
  std::string pattern;
  for (const char c : sentence) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit) pattern += c;
    else if (!pattern.ends_with('#')) pattern += '#';
  }
  expect(std::find(std::begin(kSentences), std::end(kSentences), pattern) != std::end(kSentences), "a refusal is one of the known sentences");
}

// The depth of valid JSON, and whether a string in it holds U+0000.
struct Shape {
  int depth = 0;
  bool has_nul = false;
};

Shape shape_of(std::string_view valid_json) {
  Shape shape;
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < valid_json.size(); ++i) {
    const char c = valid_json[i];
    if (in_string && c == '\\') {
      shape.has_nul = shape.has_nul || valid_json.substr(i, 6) == "\\u0000";
      ++i;
    } else if (c == '"') {
      in_string = !in_string;
    } else if (!in_string && (c == '{' || c == '[')) {
      shape.depth = std::max(shape.depth, ++depth);
    } else if (!in_string && (c == '}' || c == ']')) {
      --depth;
    }
  }
  return shape;
}

// The body as an object; a discarded value if every parser has to refuse it.
json read_body(std::string_view body) {
  const json refused(json::value_t::discarded);
  if (body.find('\0') != std::string_view::npos || !json::accept(body)) return refused;
  const Shape shape = shape_of(body);
  if (shape.depth > 64 || shape.has_nul) return refused;
  json document = json::parse(body, nullptr, /*allow_exceptions=*/false);
  return document.is_object() ? document : refused;
}

bool is_text(const json& object, const char* field) { return object.contains(field) && object[field].is_string(); }
bool is_some_text(const json& object, const char* field) { return is_text(object, field) && object[field] != ""; }
bool is_absent(const json& object, const char* field) { return !object.contains(field) || object[field].is_null(); }

bool is_good_message(const json& message) {
  if (!message.is_object() || !is_some_text(message, "role")) return false;
  const bool may_lack_content = !is_absent(message, "images") || !is_absent(message, "tool_calls");
  return is_text(message, "content") || (may_lack_content && is_absent(message, "content"));
}

bool has_good_conversation(const json& document) {
  if (!is_some_text(document, "appID") || code_points(document["appID"].get<std::string>()) > 64) return false;
  if (is_absent(document, "messages")) return true;
  const json& messages = document["messages"];
  return messages.is_array() && std::all_of(messages.begin(), messages.end(), is_good_message);
}

bool is_good_chat(const json& document) {
  return has_good_conversation(document) && is_some_text(document, "model") && (!document.contains("stream") || document["stream"].is_boolean());
}

void check_stored(const std::string& text, const json& written) {
  expect(text == written.get<std::string>(), "a stored string is what the client wrote");
  expect(text.find('\0') == std::string::npos, "no stored string holds U+0000");
}

void check_messages(const std::vector<ChatMessage>& messages, const json& document) {
  if (is_absent(document, "messages")) {
    expect(messages.empty(), "without messages there are none");
    return;
  }
  const json& written = document["messages"];
  expect(messages.size() == written.size(), "all messages are taken");
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const json whole = json::parse(messages[i].json, nullptr, false);
    expect(whole.is_object() && whole.dump() == written[i].dump(), "a message is passed on as the client wrote it");
    check_stored(messages[i].role, written[i]["role"]);
    check_stored(messages[i].content, is_absent(written[i], "content") ? json("") : written[i]["content"]);
  }
}

// What Ollama would get of it (contract 3.4), the older messages aside.
std::string assemble(const ChatRequest& chat) {
  std::string body = "{\"model\":" + chat.model_json + ",\"messages\":[";
  for (const ChatMessage& message : chat.messages) body += (body.ends_with('[') ? "" : ",") + message.json;
  return body + "],\"stream\":" + (chat.stream ? "true" : "false") + chat.other_fields + "}";
}

void check_chat(std::string_view body, const json& document) {
  const auto parsed = parse_chat_request(body);
  expect(parsed.ok() == (!document.is_discarded() && is_good_chat(document)), "a chat request is taken if and only if it is right");
  if (!parsed.ok()) return check_sentence(parsed.error().sentence);
  const ChatRequest& chat = parsed.value();
  check_stored(chat.app_id, document["appID"]);
  check_messages(chat.messages, document);

  json expected = document;
  expected.erase("appID");
  if (is_absent(expected, "messages")) expected["messages"] = json::array();
  if (!expected.contains("stream")) expected["stream"] = true;
  const json sent = json::parse(assemble(chat), nullptr, false);
  // As text, because == takes 1 and 1.0 for the same.
  expect(!sent.is_discarded() && sent.dump() == expected.dump(), "Ollama gets every field but appID unchanged");
}

void check_prep(std::string_view body, const json& document) {
  const auto parsed = parse_prep_request(body);
  expect(parsed.ok() == (!document.is_discarded() && has_good_conversation(document)), "a prep request is taken if and only if it is right");
  if (!parsed.ok()) return check_sentence(parsed.error().sentence);
  check_stored(parsed.value().app_id, document["appID"]);
  check_messages(parsed.value().messages, document);
}

void check_post(std::string_view body, const json& document) {
  const auto parsed = parse_post_request(body);
  const char* name = !document.is_discarded() && document.contains("name") ? "name" : "username";
  expect(parsed.ok() == (!document.is_discarded() && is_text(document, name) && is_text(document, "message")),
         "a public chatt is taken if and only if it is right");
  if (!parsed.ok()) return check_sentence(parsed.error().sentence);
  check_stored(parsed.value().name, document[name]);
  check_stored(parsed.value().message, document["message"]);
}

}  // namespace

void request(Bytes input) {
  const std::string_view body = Input(input).rest();
  const json document = read_body(body);
  check_chat(body, document);
  check_prep(body, document);
  check_post(body, document);
}

}  // namespace fuzz

FUZZ_TARGET(request)
