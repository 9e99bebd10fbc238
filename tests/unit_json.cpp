// Whether a line is JSON: the product's own check against nlohmann's parser.
#include "tests/catch.hpp"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "json_check.hpp"
#include "json_view.hpp"

namespace {

using Texts = std::vector<std::string>;

// nlohmann's parser takes a NUL byte for the end of its input.
bool nlohmann_accepts(const std::string& text) { return text.find('\0') == std::string::npos && nlohmann::json::accept(text); }

// Calls `check` with each text of up to `pieces_max` of the pieces.
void for_each_text(const Texts& pieces, int pieces_max, const std::string& begin, const auto& check) {
  check(begin);
  if (pieces_max == 0) return;
  for (const std::string& piece : pieces) for_each_text(pieces, pieces_max - 1, begin + piece, check);
}

// The texts on which the two disagree.
Texts disagreements(const Texts& pieces, int pieces_max, const std::string& before = "", const std::string& behind = "") {
  Texts found;
  for_each_text(pieces, pieces_max, "", [&](const std::string& middle) {
    const std::string text = before + middle + behind;
    if (is_json(text) != nlohmann_accepts(text)) found.push_back(text);
  });
  return found;
}

}  // namespace

TEST_CASE("JSON is what nlohmann's parser takes for it: structure", "[json]") {
  CHECK(disagreements({"{", "}", "[", "]", ",", ":", "\"a\"", "1", " ", "null"}, 5).empty());
}

TEST_CASE("JSON is what nlohmann's parser takes for it: numbers", "[json]") {
  CHECK(disagreements({"-", "+", ".", "e", "E", "0", "7", "x"}, 6).empty());
  for (const std::string digits : {"308", "309", "999", "-999", "99999999999999999999", "0000000"}) CHECK(disagreements({"1", "9", "-", "."}, 3, "", "e" + digits).empty());
  // Just below and above the largest double, written out.
  for (const char digit : {'1', '9'}) CHECK(disagreements({"1", "."}, 2, digit + std::string(307, '0')).empty());
  CHECK(is_json(std::string(308, '9')));
  CHECK_FALSE(is_json(std::string(310, '9')));
}

TEST_CASE("JSON is what nlohmann's parser takes for it: strings", "[json]") {
  Texts bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  // Behind a string long enough to be read eight bytes at a time, and alone.
  CHECK(disagreements(bytes, 2, "\"", "\"").empty());
  CHECK(disagreements(bytes, 1, "\"0123456", "789abcdef\"").empty());
  CHECK(disagreements({"\x7f", "\x80", "\xbf", "\xc2", "\xe0", "\x9f", "\xa0", "\xed", "\xf0", "\x90", "\xf4", "\x8f"}, 4, "\"", "\"").empty());
  CHECK(disagreements({"\\", "\"", "u", "n", "00", "d8", "dc", "DB", "fF", "g"}, 5, "\"", "\"").empty());
}

TEST_CASE("JSON is what nlohmann's parser takes for it: words, white space and a byte order mark", "[json]") {
  CHECK(disagreements({"t", "r", "u", "e", "true", "false", "null", " "}, 4).empty());
  Texts bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  CHECK(disagreements(bytes, 1, "{", "}").empty());
  CHECK(disagreements(bytes, 1, "", "[]").empty());
  CHECK(disagreements(bytes, 1, "[]").empty());
  CHECK(disagreements({"\xef", "\xbb", "\xbf", " "}, 4, "", "{}").empty());
}

TEST_CASE("each front part of a document is not one", "[json]") {
  const std::string document = R"({"a":[1.5e3,{"b":null,"c":[]},"\u00e9\ud83d\ude00é"],"d":{},"e":true})";
  CHECK(is_json(document));
  for (size_t size = 0; size < document.size(); ++size) CHECK_FALSE(is_json(document.substr(0, size)));
}

TEST_CASE("the members of an object are read as they were written, their keys also when escaped", "[json]") {
  JsonMembers member(R"( {"a" : "x\"}" ,"\u0062":[1, {"c":2}],"":{}} )");
  REQUIRE(member.next());
  CHECK(member.is("a"));
  CHECK_FALSE(member.is("b"));
  CHECK(member.value() == R"("x\"}")");
  REQUIRE(member.next());
  CHECK(member.is("b"));
  CHECK(member.value() == R"([1, {"c":2}])");
  REQUIRE(member.next());
  CHECK(member.is(""));
  CHECK(member.key().empty());
  CHECK(member.value() == "{}");
  CHECK_FALSE(member.next());
  CHECK_FALSE(member.next());
}
