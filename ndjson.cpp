#include "ndjson.hpp"

#include "json_check.hpp"
#include "json_view.hpp"

namespace {

// The text of the message's content, "" if it has none.
std::string content_of(std::string_view message) {
  std::string content;
  if (!is_json_object(message)) return content;
  for (JsonMembers member(message); member.next();) {
    if (member.is("content")) content = json_string(member.value()).value_or("");
  }
  return content;
}

std::optional<std::string> error_in(std::string_view value) {
  if (value == "null") return std::nullopt;
  if (auto text = json_string(value)) return text;
  return std::string(value);
}

}  // namespace

OllamaLine parse_ollama_line(std::string_view text) {
  OllamaLine line;
  if (!is_json_object(text) || !is_json(text)) return line;
  line.is_object = true;
  // Of members of the same name the last one counts, whatever its type.
  for (JsonMembers member(text); member.next();) {
    if (member.is("done")) line.done = member.value() == "true";
    else if (member.is("message")) line.content = content_of(member.value());
    else if (member.is("error")) line.error = error_in(member.value());
  }
  return line;
}
