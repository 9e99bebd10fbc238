// Fuzz target: the event stream that chatterd makes of Ollama's bytes, read by an independent parser
// (contract 3.7 to 3.11). The input is a character of choices, one for the limit of a line as in
// ndjson.cpp, the cuts, and the bytes.
#include "sse.hpp"

#include "relay.hpp"
#include "tests/fuzz/fuzz.hpp"
#include "tests/fuzz/reference.hpp"
#include "tests/harness/sse.hpp"

namespace fuzz {
namespace {

using nlohmann::json;

// Bits of the first character.
constexpr unsigned kBreaks = 1;  // the connection to Ollama breaks at the end
constexpr unsigned kKeepsWhitespace = 2;

constexpr std::size_t kLargeLine = 1 << 20;
constexpr char kBroke[] = "It broke.";

struct Outcome {
  std::string stream;
  std::string reply;
  long lines = 0;
};

Outcome frame(std::string_view text, unsigned choices, std::size_t line_bytes_max, const Cuts& cuts) {
  SseFraming framing(line_bytes_max, (choices & kKeepsWhitespace) != 0);
  Outcome outcome;
  bool fits = true;
  cuts.for_each(text, [&](std::string_view piece) { return fits = framing.take(piece, outcome.stream); });
  framing.close(!fits ? describe(Ending::too_large) : (choices & kBreaks) != 0 ? kBroke : "", outcome.stream);
  outcome.reply = framing.reply();
  outcome.lines = framing.lines();
  return outcome;
}

// The events that have to come, but for the words of errors that are chatterd's own.
struct Expected {
  std::vector<harness::SseEvent> events;
  std::string reply;
  long lines = 0;
};

void expect_line(Expected& expected, std::string line, const LineFacts& facts) {
  ++expected.lines;
  if (!facts.is_object || facts.error) {
    const bool has_text = facts.is_object && facts.error->is_string();
    expected.events.push_back({"error", has_text ? facts.error->get<std::string>() : std::string(), 1});
    return;
  }
  for (char& c : line) c = c == '\r' ? ' ' : c;
  expected.events.push_back({"message", line, 1});
  expected.reply += facts.content;
}

Expected expect_events(std::string_view text, unsigned choices, std::size_t line_bytes_max) {
  const Lines split = split_lines(text, line_bytes_max);
  const bool breaks = split.too_long || (choices & kBreaks) != 0;
  Expected expected;
  bool done = false;
  bool error_last = false;
  for (std::size_t i = 0; i < split.lines.size(); ++i) {
    const LineFacts facts = read_line(split.lines[i]);
    const bool cut_off = breaks && !split.last_is_ended && i + 1 == split.lines.size();
    if (cut_off && !facts.is_object) continue;
    expect_line(expected, split.lines[i], facts);
    error_last = facts.error.has_value();
    done = done || (facts.done && !error_last);
  }
  if (!done && (breaks || !error_last)) expected.events.push_back({"error", "", 1});
  return expected;
}

// The text of the event's data, which is exactly `{ "error": <JSON string> }`.
std::string error_of(const harness::SseEvent& event) {
  constexpr std::string_view kBegin = "{ \"error\": ";
  constexpr std::string_view kEnd = " }";
  const std::string_view data = event.data;
  expect(data.starts_with(kBegin) && data.ends_with(kEnd) && data.size() >= kBegin.size() + kEnd.size(), "an error's data has its form");
  const json text = json::parse(data.substr(kBegin.size(), data.size() - kBegin.size() - kEnd.size()), nullptr, false);
  expect(text.is_string(), "an error is a JSON string");
  return text.get<std::string>();
}

void check_events(const std::string& stream, const std::vector<harness::SseEvent>& expected) {
  const auto events = harness::parse_sse(stream);  // throws at anything but data and event, each on one line
  expect(events.size() == expected.size(), "there are as many events as lines, and one error if the answer broke off");
  for (std::size_t i = 0; i < events.size(); ++i) {
    expect(events[i].type == expected[i].type && events[i].data_lines == 1, "an event is of its line's kind");
    if (events[i].type == "message") {
      expect(events[i].data == expected[i].data, "data is the line byte for byte");
    } else {
      const std::string text = error_of(events[i]);
      expect(!text.empty() || expected[i].data.empty(), "an error has words");
      expect(expected[i].data.empty() || text == expected[i].data, "Ollama's error keeps its words");
    }
  }
}

// What is stored of a reply (contract 3.11).
std::string stored(const std::string& reply, bool keeps_whitespace) {
  std::string text;
  bool after_space = false;
  for (const char c : reply) {
    const bool space = std::string_view(" \t\n\v\f\r").find(c) != std::string_view::npos;
    if (c == '\0') text += "\xEF\xBF\xBD";
    else if (!space || keeps_whitespace) text += c;
    else if (!after_space) text += ' ';
    after_space = space;
  }
  return text;
}

void check_any_error(std::string_view text) {
  std::string out;
  append_sse_error(out, text);
  const auto events = harness::parse_sse(out);
  expect(events.size() == 1 && events[0].type == "error" && events[0].data_lines == 1, "any text makes one error event");
  expect(error_of(events[0]) == repair_utf8(text), "an error's text is what it was, with U+FFFD for what is not UTF-8");
  expect(!error_text(500, text).empty(), "an error answer always has words");
}

// A completion's answer is passed on unchanged, in whatever form it ends.
void check_raw(std::string_view text, const Cuts& cuts) {
  RawFraming framing(/*ndjson=*/true);
  std::string out;
  cuts.for_each(text, [&](std::string_view piece) { return framing.take(piece, out); });
  expect(out == text, "a completion is passed on unchanged");
  const bool told = framing.close(kBroke, out);
  if (told) expect(json::parse(out.substr(text.size()), nullptr, false) == json{{"error", kBroke}}, "the last line tells what broke");
  else expect(out == text, "what can't be told is left out");
}

}  // namespace

void sse(Bytes bytes) {
  Input input(bytes);
  const unsigned choices = input.byte();
  const std::size_t limit_choice = input.byte() & 63;
  const std::size_t line_bytes_max = limit_choice == 0 ? kLargeLine : limit_choice;
  const Cuts cuts(input);
  const std::string_view text = input.rest();

  const Expected expected = expect_events(text, choices, line_bytes_max);
  const Outcome whole = frame(text, choices, line_bytes_max, Cuts());
  const Outcome cut = frame(text, choices, line_bytes_max, cuts);
  check_events(whole.stream, expected.events);
  expect(whole.lines == expected.lines, "every line is counted");
  expect(whole.reply == stored(expected.reply, (choices & kKeepsWhitespace) != 0), "the reply is the text of all lines");
  expect(cut.stream == whole.stream, "the stream is the same however the bytes are cut");
  expect(cut.lines == whole.lines && cut.reply == whole.reply, "the reply is the same however the bytes are cut");
  check_any_error(text);
  check_raw(text, cuts);
}

}  // namespace fuzz

FUZZ_TARGET(sse)
