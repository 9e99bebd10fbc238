// Fuzz target: Ollama's bytes as lines, and what a line says. The input is a character for the limit of a
// line (@: a large one, else its code's low six bits), the cuts, and the stream.
#include "ndjson.hpp"

#include "tests/fuzz/fuzz.hpp"
#include "tests/fuzz/reference.hpp"

namespace fuzz {
namespace {

using nlohmann::json;

constexpr std::size_t kLargeLine = 1 << 20;

Lines split(std::string_view text, std::size_t line_bytes_max, const Cuts& cuts) {
  LineSplitter splitter(line_bytes_max);
  Lines result;
  const auto on_line = [&](std::string_view line) {
    expect(line.size() <= line_bytes_max, "no line is over its limit");
    expect(line.find('\n') == std::string_view::npos, "no line holds a line end");
    result.lines.emplace_back(line);
  };
  cuts.for_each(text, [&](std::string_view piece) {
    // On the heap and exactly this long, so that ASan sees a byte too many.
    const std::vector<char> exact(piece.begin(), piece.end());
    result.too_long = !splitter.feed({exact.data(), exact.size()}, on_line);
    return !result.too_long;
  });
  const std::size_t ended = result.lines.size();
  if (!result.too_long) splitter.finish(on_line);
  result.last_is_ended = ended == result.lines.size();
  return result;
}

void check_line(std::string_view line) {
  const OllamaLine parsed = parse_ollama_line(line);
  const LineFacts facts = read_line(line);
  expect(parsed.is_object == facts.is_object, "a line is an object if and only if nlohmann says so");
  expect(parsed.done == facts.done, "done is the last done of the line");
  expect(parsed.content == facts.content, "content is the last content of the last message");
  expect(parsed.error.has_value() == facts.error.has_value(), "a line has an error if its last error is not null");
  if (!parsed.error) return;
  if (facts.error->is_string()) {
    expect(*parsed.error == facts.error->get<std::string>(), "an error's text is unchanged");
  } else {
    expect(line.find(*parsed.error) != std::string_view::npos, "an error of another type is shown as it was written");
    expect(json::parse(*parsed.error, nullptr, false).dump() == facts.error->dump(), "an error of another type is shown whole");
  }
}

}  // namespace

void ndjson(Bytes bytes) {
  Input input(bytes);
  const std::size_t limit_choice = input.byte() & 63;
  const std::size_t line_bytes_max = limit_choice == 0 ? kLargeLine : limit_choice;
  const Cuts cuts(input);
  const std::string_view text = input.rest();

  const Lines expected = split_lines(text, line_bytes_max);
  expect(split(text, line_bytes_max, Cuts()) == expected, "lines of one piece");
  expect(split(text, line_bytes_max, cuts) == expected, "lines are the same however the bytes are cut");
  for (const std::string& line : expected.lines) check_line(line);
  check_line(text);
}

}  // namespace fuzz

FUZZ_TARGET(ndjson)
