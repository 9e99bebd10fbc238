#include "request.hpp"

#include "json_check.hpp"
#include "json_view.hpp"
#include "text.hpp"

namespace {

using Members = std::vector<JsonMember>;

// Sure when true. Most bodies are right, which takes a tenth of the time to see that it takes to say what is wrong.
bool is_right(std::string_view body) { return is_json(body, kJsonDepthMax) && body.find("\\u0000") == std::string_view::npos; }

Result<Members, BadRequest> parse_object(std::string_view body) {
  if (auto problem = is_right(body) ? std::nullopt : find_json_problem(body)) return BadRequest{"The request's body " + *problem + "."};
  if (!is_json_object(body)) return BadRequest{"The request's body is not a JSON object."};
  return json_members(body);
}

Result<std::string, BadRequest> required_string(const Members& members, std::string_view field, const std::string& shown) {
  const JsonMember* member = find_member(members, field);
  if (member == nullptr) return BadRequest{shown + " is missing."};
  auto text = json_string(member->value);
  if (!text) return BadRequest{shown + " is not a string."};
  return std::move(*text);
}

Result<std::string, BadRequest> non_empty_string(const Members& members, std::string_view field, const std::string& shown) {
  auto text = required_string(members, field, shown);
  if (text.ok() && text.value().empty()) return BadRequest{shown + " is empty."};
  return text;
}

Result<std::string, BadRequest> parse_app_id(const Members& members) {
  auto app_id = non_empty_string(members, "appID", "appID");
  if (app_id.ok() && count_code_points(app_id.value()) > kAppIdCharactersMax) {
    return BadRequest{"appID is longer than " + std::to_string(kAppIdCharactersMax) + " characters."};
  }
  return app_id;
}

bool holds(const Members& members, std::string_view field) {
  const JsonMember* member = find_member(members, field);
  return member != nullptr && member->value != "null";
}

Result<ChatMessage, BadRequest> parse_message(std::string_view json, size_t index) {
  const std::string shown = "messages[" + std::to_string(index) + "]";
  if (!is_json_object(json)) return BadRequest{shown + " is not an object."};
  const Members members = json_members(json);
  auto role = non_empty_string(members, "role", shown + ".role");
  if (!role.ok()) return role.error();

  ChatMessage message{std::move(role.value()), "", std::string(json)};
  const bool may_lack_content = holds(members, "images") || holds(members, "tool_calls");
  if (!may_lack_content || holds(members, "content")) {
    auto content = required_string(members, "content", shown + ".content");
    if (!content.ok()) return content.error();
    message.content = std::move(content.value());
  }
  return message;
}

Result<std::vector<ChatMessage>, BadRequest> parse_messages(const Members& members) {
  std::vector<ChatMessage> messages;
  const JsonMember* member = find_member(members, "messages");
  if (member == nullptr || member->value == "null") return messages;
  if (member->value.front() != '[') return BadRequest{"messages is not an array."};
  for (const std::string_view element : json_elements(member->value)) {
    auto message = parse_message(element, messages.size());
    if (!message.ok()) return message.error();
    messages.push_back(std::move(message.value()));
  }
  return messages;
}

Result<bool, BadRequest> parse_stream(const Members& members) {
  const JsonMember* member = find_member(members, "stream");
  if (member == nullptr || member->value == "true") return true;
  if (member->value == "false") return false;
  return BadRequest{"stream is not a boolean."};
}

std::string collect_other_fields(const Members& members) {
  std::string fields;
  for (const JsonMember& member : members) {
    if (member.key == "appID" || member.key == "model" || member.key == "messages" || member.key == "stream") continue;
    fields += ',';
    append_json_string(fields, member.key);
    fields += ':';
    fields += member.value;
  }
  return fields;
}

}  // namespace

Result<ChatRequest, BadRequest> parse_chat_request(std::string_view body) {
  auto object = parse_object(body);
  if (!object.ok()) return object.error();
  const Members& members = object.value();
  auto app_id = parse_app_id(members);
  if (!app_id.ok()) return app_id.error();
  if (auto model = non_empty_string(members, "model", "model"); !model.ok()) return model.error();
  auto messages = parse_messages(members);
  if (!messages.ok()) return messages.error();
  auto stream = parse_stream(members);
  if (!stream.ok()) return stream.error();

  ChatRequest request;
  request.app_id = std::move(app_id.value());
  request.messages = std::move(messages.value());
  request.model_json = find_member(members, "model")->value;
  request.stream = stream.value();
  request.other_fields = collect_other_fields(members);
  return request;
}

Result<PrepRequest, BadRequest> parse_prep_request(std::string_view body) {
  auto object = parse_object(body);
  if (!object.ok()) return object.error();
  auto app_id = parse_app_id(object.value());
  if (!app_id.ok()) return app_id.error();
  auto messages = parse_messages(object.value());
  if (!messages.ok()) return messages.error();
  return PrepRequest{std::move(app_id.value()), std::move(messages.value())};
}

Result<PostRequest, BadRequest> parse_post_request(std::string_view body) {
  auto object = parse_object(body);
  if (!object.ok()) return object.error();
  const Members& members = object.value();
  const std::string_view name_field = find_member(members, "name") != nullptr ? "name" : "username";
  auto name = required_string(members, name_field, find_member(members, name_field) != nullptr ? std::string(name_field) : "name");
  if (!name.ok()) return name.error();
  auto message = required_string(members, "message", "message");
  if (!message.ok()) return message.error();
  return PostRequest{std::move(name.value()), std::move(message.value())};
}
