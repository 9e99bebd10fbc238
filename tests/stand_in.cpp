// ollama_stand_in: answers in Ollama's place where no Ollama is installed, by its documented API, with a
// canned answer that repeats what it was sent, so that one sees that the history arrived.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "tests/harness/scripted_ollama.hpp"

namespace {

using harness::Conn;
using Json = nlohmann::ordered_json;

struct Options {
  int port = 0;
  int token_ms = 60;
};

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string timestamp() {
  timespec now{};
  std::timespec_get(&now, TIME_UTC);
  tm utc{};
  gmtime_r(&now.tv_sec, &utc);
  char text[64];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(text + length, sizeof text - length, ".%06ldZ", now.tv_nsec / 1000);
  return text;
}

std::string text_of(const Json& object, const char* field) {
  const auto found = object.find(field);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// The words of the answer, each with the space before it, as a model's tokens have it.
std::vector<std::string> tokens_of(const std::string& text) {
  std::vector<std::string> tokens(1);
  for (const char c : text) {
    if (c == ' ' && !tokens.back().empty()) tokens.emplace_back();
    tokens.back() += c;
  }
  return tokens;
}

std::string answer_to_chat(const Json& messages) {
  size_t prompts = 0;
  std::string first;
  for (const Json& message : messages) {
    if (!message.is_object() || text_of(message, "role") != "user") continue;
    if (++prompts == 1) first = text_of(message, "content");
  }
  if (prompts == 0) return "This is the stand-in, not a model. You have sent no prompt so far.";
  return "This is the stand-in, not a model. You have sent " + std::to_string(prompts) +
         (prompts == 1 ? " prompt" : " prompts") + " so far; the first was: " + first;
}

// One object of the answer: /api/chat has a message where /api/generate has a response.
Json line_with(const std::string& model, bool chat, const std::string& text) {
  Json line{{"model", model}, {"created_at", timestamp()}};
  if (chat) {
    line["message"] = Json{{"role", "assistant"}, {"content", text}};
  } else {
    line["response"] = text;
  }
  line["done"] = false;
  return line;
}

void finish(Json& line, size_t token_count, int token_ms) {
  const long long took_ns = 1000000LL * token_ms * static_cast<long long>(token_count);
  line["done"] = true;
  line["done_reason"] = token_count == 0 ? "load" : "stop";
  line["total_duration"] = took_ns;
  line["load_duration"] = 0;
  line["prompt_eval_count"] = 1;
  line["prompt_eval_duration"] = 0;
  line["eval_count"] = token_count;
  line["eval_duration"] = took_ns;
}

void generate(Conn& conn, const Json& body, bool chat, int token_ms) {
  const std::string model = text_of(body, "model");
  const auto messages = body.find("messages");
  const std::string prompt = text_of(body, "prompt");
  std::vector<std::string> tokens;
  if (chat && messages != body.end() && messages->is_array() && !messages->empty()) {
    tokens = tokens_of(answer_to_chat(*messages));
  } else if (!chat && !prompt.empty()) {
    tokens = tokens_of("This is the stand-in, not a model. The prompt was: " + prompt);
  }
  const auto stream = body.find("stream");
  const bool streams = stream == body.end() || !stream->is_boolean() || stream->get<bool>();
  std::string whole;
  if (streams) conn.stream_head();
  for (const std::string& token : tokens) {
    conn.pause(token_ms);
    if (streams) conn.line(dump(line_with(model, chat, token)));
    whole += token;
  }
  Json last = line_with(model, chat, streams ? "" : whole);
  finish(last, tokens.size(), token_ms);
  if (!streams) return conn.respond(200, dump(last), "application/json; charset=utf-8");
  conn.line(dump(last));
  conn.end_chunks();
}

void answer(Conn& conn, int token_ms) {
  const auto& request = conn.request();
  // As Ollama's own log does; scripts count these lines.
  std::printf("%s %s\n", request.method.c_str(), request.path.c_str());
  std::fflush(stdout);
  const bool chat = request.path == "/api/chat";
  if (!chat && request.path != "/api/generate") return conn.respond(404, "404 page not found", "text/plain");
  if (request.method != "POST") return conn.respond(405, R"({"error":"method not allowed"})");
  const Json body = Json::parse(request.body, nullptr, false);
  if (!body.is_object()) return conn.respond(400, R"({"error":"the body is not a JSON object"})");
  if (text_of(body, "model").empty()) return conn.respond(400, R"({"error":"model is required"})");
  generate(conn, body, chat, token_ms);
}

bool read_number(const char* text, int max, int& number) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (end == text || *end != '\0' || value < 0 || value > max) return false;
  number = static_cast<int>(value);
  return true;
}

bool read_options(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; i += 2) {
    const std::string_view name = argv[i];
    const bool is_port = name == "--port";
    if ((!is_port && name != "--token-ms") || i + 1 == argc) return false;
    if (!read_number(argv[i + 1], is_port ? 65535 : 60000, is_port ? options.port : options.token_ms)) return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!read_options(argc, argv, options)) {
    std::fputs("usage: ollama_stand_in [--port N (0: a free one)] [--token-ms N]\n", stderr);
    return 2;
  }
  // Blocked before any thread starts, so that only the sigwait below sees them.
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  try {
    harness::ScriptedOllama server(harness::bind_loopback(options.port));
    server.answer_with([token_ms = options.token_ms](Conn& conn) { answer(conn, token_ms); });
    std::printf("listening on %s\n", server.url().c_str());
    std::fflush(stdout);
    int signal_number = 0;
    sigwait(&stop_signals, &signal_number);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ollama_stand_in: %s\n", error.what());
    return 1;
  }
  return 0;
}
