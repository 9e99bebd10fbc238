// Much of everything: lines, messages, bytes.
#include "tests/faults/world.hpp"

using namespace faults;

namespace {

constexpr int kLines = 100000;
constexpr int kMessages = 5000;
constexpr size_t kMessageBytes = size_t{3} << 20;

void report_memory(const std::string& of_what, size_t before_kib, const World& world) {
  report(of_what + ": memory grew from " + std::to_string(before_kib) + " to " + std::to_string(memory_peak_kib(world.pid())) + " KiB at most");
}

size_t grown_kib(const World& world, size_t before_kib) {
  const size_t peak = memory_peak_kib(world.pid());
  return world.sanitized() || peak < before_kib ? 0 : peak - before_kib;
}

std::string many_words(int from, int to) {
  std::string words;
  for (int i = from; i < to; ++i) words += "w" + std::to_string(i) + " ";
  return words;
}

}  // namespace

TEST_CASE("a reply of 100,000 lines arrives whole, is stored whole, and costs no memory but its text", "[fault][slow][size]") {
  World world;
  world.reply_to = [](const std::string& prompt) { return prompt == "long#1" ? many_words(0, kLines) : usual_reply(prompt); };
  world.ollama.answer_with([](Conn& conn) {
    conn.stream_head();
    for (int i = 0; i < kLines; i += 100) {
      std::string lines;
      for (int j = i; j < i + 100; ++j) lines += token_line("w" + std::to_string(j) + " ") + "\n";
      conn.chunk(lines);
    }
    conn.line(done_line());
    conn.end_chunks();
  });
  reset_memory_peak(world.pid());
  const size_t before_kib = memory_kib(world.pid());
  const Turn turn = world.turn("long", "long#1");
  CHECK(turn.status == 200);
  CHECK(turn.reply_due);
  report_memory("100,000 lines", before_kib, world);
  CHECK(grown_kib(world, before_kib) < 8 * 1024);
  world.ollama.answer_with(talk());
  world.finish();
}

TEST_CASE("a conversation of 5,000 messages goes on, with memory bounded by its text", "[fault][slow][size]") {
  World world;
  std::string messages;
  for (int i = 0; i < kMessages; ++i) {
    Turn prepared;
    prepared.prompt = "message " + std::to_string(i) + " " + std::string(100, 'm');
    prepared.outcome = Outcome::acknowledged;
    messages += (i == 0 ? "" : ",") + (R"({"role":"user","content":")" + prepared.prompt + "\"}");
    world.log.add("crowd", prepared);
  }
  const auto began = Clock::now();
  CHECK(exchange(world.endpoint(), {"POST", "/llmprep/", R"({"appID":"crowd","messages":[)" + messages + "]}", {}}).status() == 200);
  const double prepared_ms = ms_between(began, Clock::now());
  reset_memory_peak(world.pid());
  const size_t before_kib = memory_kib(world.pid());
  Turn last;
  for (int i = 0; i < 5; ++i) last = world.turn("crowd", "crowd#" + std::to_string(i));
  CHECK(last.status == 200);
  CHECK(last.reply_due);
  const std::string sent = world.ollama.wait_for_request("crowd#4")->request().body;
  CHECK(sent.find("message 0 ") != std::string::npos);
  CHECK(sent.find("message 4999 ") != std::string::npos);
  report("stored in " + ms_text(prepared_ms) + "; the status of the last turn came after " +
         ms_text(last.status_ms));
  report_memory("5,000 messages", before_kib, world);
  CHECK(last.status_ms < world.within_ms(1000));
  // The rows as libpq keeps them and the body for Ollama, some times over.
  CHECK(grown_kib(world, before_kib) < 8 * 1024);
  world.finish();
}

TEST_CASE("a message of 3 MB is stored and reaches Ollama whole, with memory bounded by its size", "[fault][slow][size]") {
  World world;
  const std::string prompt = "big#1 " + std::string(kMessageBytes, 'b') + " end";
  reset_memory_peak(world.pid());
  const size_t before_kib = memory_kib(world.pid());
  const Turn turn = world.turn("big", prompt);
  CHECK(turn.status == 200);
  CHECK(prompt_of(world.ollama.wait_for_request("big#1")->request()) == prompt);
  report_memory("3 MB", before_kib, world);
  // The body, the message, libpq's copies there and back, and the body for Ollama.
  CHECK(grown_kib(world, before_kib) < 10 * kMessageBytes / 1024);
  CHECK(world.turn("big", "big#2").status == 200);
  world.finish();
}
