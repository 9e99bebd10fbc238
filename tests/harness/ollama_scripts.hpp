// Common behaviours of Ollama as scripts, and its lines as text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tests/harness/scripted_ollama.hpp"

namespace harness {

// {"model":...,"message":{"role":"assistant","content":<text>},"done":false}, without a line end.
std::string token_line(std::string_view text);
std::string thinking_line(std::string_view text);
std::string done_line();
std::string error_line(std::string_view text);
// A JSON string with its quotes.
std::string json_string(std::string_view text);

// The headers, each line as soon as the one before is out, the last chunk.
Script answer_lines(std::vector<std::string> lines);
Script answer_tokens(std::vector<std::string> tokens);  // and the done line
// The headers, then each piece as a chunk of its own with a short pause, so that pieces arrive apart.
Script answer_pieces(std::vector<std::string> pieces);
// One document of this status and a Content-Length.
Script answer_document(int status, std::string body, std::string content_type = "application/json");
// The headers and the tokens, then nothing until the gate opens, then the done line.
Script answer_then_wait(std::vector<std::string> tokens, Gate gate);
// The last message of a request to Ollama: the prompt.
std::string last_content(const std::string& body);
// Answers a prompt P with "re-P". A prompt that holds `mark` waits in mid-stream for the gate.
Script echo(const std::string& mark = "none", const Gate& gate = {});

}  // namespace harness
