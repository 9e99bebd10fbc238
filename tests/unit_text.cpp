#include "tests/catch.hpp"

#include <chrono>
#include <nlohmann/json.hpp>

#include "text.hpp"

namespace {

std::string as_json(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

std::string compact(std::initializer_list<std::string_view> pieces, bool keep = false) {
  ReplyText reply(keep);
  for (const std::string_view piece : pieces) reply.append(piece);
  return reply.text();
}

}  // namespace

TEST_CASE("a text is trimmed, found in a list, and a hexadecimal digit has its value", "[text]") {
  CHECK(trim(" \t a b\t ") == "a b");
  CHECK(trim(" \t ").empty());
  CHECK(is_one_of("GET", "GET, HEAD"));
  CHECK(is_one_of("HEAD", "GET, HEAD"));
  CHECK_FALSE(is_one_of("HEA", "GET, HEAD"));
  CHECK_FALSE(is_one_of("GET, HEAD", "GET, HEAD"));
  CHECK(hex_value('9') == 9);
  CHECK(hex_value('a') == 10);
  CHECK(hex_value('F') == 15);
  CHECK(hex_value('g') == -1);
}

TEST_CASE("a JSON string escapes quotes, backslashes and control characters, and leaves UTF-8 as it is", "[text]") {
  CHECK(as_json("") == "\"\"");
  CHECK(as_json("a\"b\\c") == R"("a\"b\\c")");
  CHECK(as_json("\b\f\n\r\t\x01\x1f") == "\"\\b\\f\\n\\r\\t\\u0001\\u001f\"");
  CHECK(as_json("\x7f\xc3\xa9 \xe2\x80\xa8 \xf0\x9f\x98\x80") == "\"\x7f\xc3\xa9 \xe2\x80\xa8 \xf0\x9f\x98\x80\"");
}

TEST_CASE("a JSON string is right wherever a character stands that is not plain", "[text]") {
  std::vector<std::string> characters = {"\xc2\x80", "\xc3\xa9", "\xe2\x80\xa8", "\xed\x9f\xbf", "\xef\xbf\xbf", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf",
                                         "\"\\", " \n", "!\"", "\x80"};
  for (int byte = 0; byte < 128; ++byte) characters.emplace_back(1, static_cast<char>(byte));
  // Behind a plain character, and behind those from which a borrow could come.
  for (const char plain : {'a', ' ', '!', '#', '[', ']', '\x7f'}) {
    for (const std::string& character : characters) {
      for (size_t at = 0; at <= 20; ++at) {
        std::string text(24, plain);
        text.replace(at, 1, character);
        INFO("at " << at << " of " << nlohmann::json(text).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
        REQUIRE(as_json(text) == nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
      }
    }
  }
}

TEST_CASE("invalid UTF-8 becomes U+FFFD in a JSON string, so that the JSON stays valid", "[text]") {
  const std::string_view bad = GENERATE(std::string_view("\xff"), std::string_view("\xc0\xaf"), std::string_view("\xed\xa0\x80"),
                                        std::string_view("\xf4\x90\x80\x80"), std::string_view("\xe2\x82"), std::string_view("\x80"));
  const std::string json = as_json("a" + std::string(bad) + "b");
  CHECK(json.find("\xEF\xBF\xBD") != std::string::npos);
  CHECK(json.find(bad) == std::string::npos);
  CHECK(json.front() == '"');
  CHECK(json.substr(json.size() - 2) == "b\"");
}

TEST_CASE("code points are counted, not bytes", "[text]") { CHECK(count_code_points("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80") == 4); }

TEST_CASE("each run of white space in a reply becomes one space, also across pieces (3.11)", "[text]") {
  CHECK(compact({"a  b"}) == "a b");
  CHECK(compact({"a ", " b"}) == "a b");
  CHECK(compact({"a\t", "\n", "\v\f\r", " b"}) == "a b");
  CHECK(compact({" a", "", "\n"}) == " a ");
  CHECK(compact({}).empty());
  CHECK(compact({"", ""}).empty());
  CHECK(compact({"a\xc2\xa0 b"}) == "a\xc2\xa0 b");  // a no-break space is not white space here
}

TEST_CASE("with --keep-whitespace a reply is kept byte for byte (3.11)", "[text]") { CHECK(compact({"a  ", "\n\tb"}, true) == "a  \n\tb"); }

TEST_CASE("U+0000 in a reply becomes U+FFFD, which the database can store", "[text]") {
  CHECK(compact({std::string_view("a\0b", 3)}) == "a\xEF\xBF\xBD" "b");
}

TEST_CASE("a time is written by RFC 3339 in UTC with microseconds (2)", "[text]") {
  CHECK(format_timestamp(0) == "2000-01-01T00:00:00.000000Z");
  CHECK(format_timestamp(-1) == "1999-12-31T23:59:59.999999Z");
  CHECK(format_timestamp(835'565'403'000'007) == "2026-06-23T21:30:03.000007Z");
  CHECK(format_timestamp(kNoTime) == "-infinity");
}

TEST_CASE("a time of any year is written in full", "[text]") {
  using namespace std::chrono;
  const auto start_of = [](int number) {
    const auto since = sys_days(year(number) / January / 2) - sys_days(year(2000) / January / 1);
    return duration_cast<microseconds>(since).count();
  };
  CHECK(format_timestamp(start_of(1)) == "0001-01-02T00:00:00.000000Z");
  CHECK(format_timestamp(start_of(999) + 1) == "0999-01-02T00:00:00.000001Z");
  CHECK(format_timestamp(start_of(9999) - 1) == "9999-01-01T23:59:59.999999Z");
  CHECK(format_timestamp(start_of(10000)) == "10000-01-02T00:00:00.000000Z");
  CHECK(format_timestamp(start_of(-1)) == "-0001-01-02T00:00:00.000000Z");
  CHECK(format_timestamp(std::numeric_limits<std::int64_t>::max()) == "infinity");
}

TEST_CASE("a UUID is written from its 16 bytes, and nothing from none", "[text]") {
  CHECK(format_uuid("") == "");
  CHECK(format_uuid(std::string_view("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff", 16)) ==
        "00112233-4455-6677-8899-aabbccddeeff");
}

TEST_CASE("UUIDs are of version 4 and differ", "[text]") {
  const std::string uuid = make_uuid();
  CHECK(uuid.size() == 36);
  CHECK(uuid[14] == '4');
  CHECK(std::string("89ab").find(uuid[19]) != std::string::npos);
  CHECK(uuid != make_uuid());
}
