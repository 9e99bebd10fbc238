#include "tests/harness/ollama_scripts.hpp"

#include <nlohmann/json.hpp>

namespace harness {
namespace {

constexpr const char* kStart = R"({"model":"m","created_at":"2025-03-01T10:00:00.123456Z",)";

}  // namespace

std::string json_string(std::string_view text) { return nlohmann::json(std::string(text)).dump(); }

std::string token_line(std::string_view text) {
  return kStart + (R"("message":{"role":"assistant","content":)" + json_string(text)) + R"(},"done":false})";
}

std::string thinking_line(std::string_view text) {
  return kStart + (R"("message":{"role":"assistant","content":"","thinking":)" + json_string(text)) +
         R"(},"done":false})";
}

std::string done_line() {
  return std::string(kStart) + R"("message":{"role":"assistant","content":""},"done":true,"done_reason":"stop",)" +
         R"("total_duration":5000,"load_duration":1,"prompt_eval_count":26,"eval_count":4,"eval_duration":4000})";
}

std::string error_line(std::string_view text) { return R"({"error":)" + json_string(text) + "}"; }

Script answer_lines(std::vector<std::string> lines) {
  return [lines](Conn& conn) {
    conn.stream_head();
    for (const std::string& line : lines) conn.line(line);
    conn.end_chunks();
  };
}

Script answer_tokens(std::vector<std::string> tokens) {
  std::vector<std::string> lines;
  for (const std::string& token : tokens) lines.push_back(token_line(token));
  lines.push_back(done_line());
  return answer_lines(std::move(lines));
}

Script answer_pieces(std::vector<std::string> pieces) {
  return [pieces](Conn& conn) {
    conn.stream_head();
    for (const std::string& piece : pieces) {
      conn.chunk(piece);
      conn.pause(4);
    }
    conn.end_chunks();
  };
}

Script answer_document(int status, std::string body, std::string content_type) {
  return [=](Conn& conn) { conn.respond(status, body, content_type); };
}

Script answer_then_wait(std::vector<std::string> tokens, Gate gate) {
  return [tokens, gate](Conn& conn) {
    conn.stream_head();
    for (const std::string& token : tokens) conn.line(token_line(token));
    conn.wait(gate);
    conn.line(done_line());
    conn.end_chunks();
  };
}

std::string last_content(const std::string& body) {
  return nlohmann::json::parse(body)["messages"].back()["content"].get<std::string>();
}

Script echo(const std::string& mark, const Gate& gate) {
  return [mark, gate](Conn& conn) {
    const std::string prompt = last_content(conn.request().body);
    if (prompt.find(mark) != std::string::npos) return answer_then_wait({"re-", prompt}, gate)(conn);
    answer_tokens({"re-", prompt})(conn);
  };
}

}  // namespace harness
