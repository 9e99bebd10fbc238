// The clients of the fault catalogue, and the Ollama they talk to.
#include <nlohmann/json.hpp>

#include "tests/faults/world.hpp"

namespace faults {
namespace {

// After a refusal, so that clients of a service that is away do not burn the processor.
constexpr int kPauseMs = 40;

// What the end of a stream says of its reply.
bool is_reply_due(const std::string& stream, bool complete) {
  if (!complete) return false;
  if (stream.find("could not be stored") != std::string::npos) return false;
  return stream.find("\"done\":true") != std::string::npos;
}

}  // namespace

std::vector<std::string> usual_tokens(const std::string& prompt) {
  return {"Re:", " \n\n", prompt.substr(0, 60), "\t\r\n", "one  ", " two", "\v\f", "three \xe2\x9c\x93", " end"};
}

std::string usual_reply(const std::string& prompt) {
  std::string all;
  for (const std::string& token : usual_tokens(prompt)) all += token;
  return all;
}

std::string prompt_of(const OllamaRequest& request) {
  const auto json = nlohmann::json::parse(request.body, nullptr, false);
  if (!json.is_object() || !json.contains("messages") || json["messages"].empty()) return "";
  return json["messages"].back().value("content", "");
}

Script talk(int pause_ms) {
  return [pause_ms](Conn& conn) {
    conn.stream_head();
    for (const std::string& token : usual_tokens(prompt_of(conn.request()))) {
      if (pause_ms > 0) conn.pause(pause_ms);
      conn.line(token_line(token));
    }
    conn.line(done_line());
    conn.end_chunks();
  };
}

std::string chat_body(const std::string& app, const std::string& prompt) {
  return R"({"appID":)" + json_string(app) + R"(,"model":"m","messages":[{"role":"user","content":)" + json_string(prompt) +
         R"(}],"stream":true})";
}

std::string chat_request(const std::string& app, const std::string& prompt) {
  return bytes_of({"POST", "/llmchat/", chat_body(app, prompt), {}});
}

Turn run_turn(const Endpoint& endpoint, const std::string& app, const std::string& prompt) {
  Turn turn;
  turn.prompt = prompt;
  turn.outcome = Outcome::refused;  // until the request is on its way
  const auto began = Clock::now();
  const auto note_time = [&] { turn.status_ms = ms_between(began, Clock::now()); };
  try {
    Connection connection(endpoint);
    turn.outcome = Outcome::unknown;
    connection.send(chat_request(app, prompt));
    const ResponseHead head = connection.read_head(4 * kPatienceMs);
    note_time();
    turn.status = head.status;
    if (head.status == 200) turn.outcome = Outcome::acknowledged;
    const std::string body = connection.read_body_to_end(6 * kPatienceMs);
    turn.outcome = outcome_of(head.status, body);
    if (head.status == 200) turn.reply_due = is_reply_due(body, connection.complete());
  } catch (const std::exception&) {
    if (turn.status == 0) note_time();
  }
  return turn;
}

Load::Load(World& world, int conversations, const std::string& name, size_t prompt_bytes) {
  for (int i = 0; i < conversations; ++i) {
    clients_.emplace_back([this, &world, app = name + "-" + std::to_string(i), prompt_bytes] {
      for (int n = 0; !stopping_; ++n) {
        std::string prompt = app + "#" + std::to_string(n);
        if (prompt.size() < prompt_bytes) prompt += " " + std::string(prompt_bytes - prompt.size() - 1, 'x');
        if (world.turn(app, prompt).status != 200) std::this_thread::sleep_for(std::chrono::milliseconds(kPauseMs));
      }
    });
  }
}

void Load::stop() {
  stopping_ = true;
  for (std::thread& client : clients_) client.join();
  clients_.clear();
}

Prober::Prober(const World& world) : world_(world), thread_([this] {
  while (!stopping_) {
    const double took_ms = world_.ping();
    if (took_ms < 0) ++failed_;
    if (took_ms > slowest_ms_) slowest_ms_ = took_ms;
    ++asked_;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}) {}

void Prober::stop() {
  stopping_ = true;
  if (thread_.joinable()) thread_.join();
}

void Prober::expect_within(int ms) {
  stop();
  report("/ was asked " + std::to_string(asked_) + " times, the slowest answer took " + ms_text(slowest_ms_));
  CHECK(asked_ > 0);
  CHECK(failed_ == 0);
  CHECK(slowest_ms_ < ms);
}

}  // namespace faults
