// Hostile input at the running server: each case is answered with a 4xx, or served correctly, or the
// connection is closed; never a crash, a 5xx, or memory beyond the limits.
#include <fstream>
#include <string>
#include <vector>

#include <unistd.h>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

std::string repeated(const std::string& text, size_t count) {
  std::string all;
  all.reserve(text.size() * count);
  for (size_t i = 0; i < count; ++i) all += text;
  return all;
}

std::string post_head(const std::string& headers) { return "POST /llmchat/ HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n"; }

double resident_mib(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/statm");
  double size_pages = 0, resident_pages = 0;
  file >> size_pages >> resident_pages;
  return resident_pages * static_cast<double>(::sysconf(_SC_PAGESIZE)) / (1024 * 1024);
}

struct Case {
  std::string what;
  std::string bytes;
};

// JSON that is refused whole.
std::vector<Case> refused_bodies() {
  const auto in_content = [](const std::string& raw) { return R"({"appID":"hostile","model":"m","messages":[{"role":"user","content":")" + raw + "\"}]}"; };
  return {
      {"arrays 100,000 deep", repeated("[", 100'000) + repeated("]", 100'000)},
      {"objects 100,000 deep", repeated("{\"a\":", 100'000) + "1" + repeated("}", 100'000)},
      {"a value 100,000 deep in a field", R"({"appID":"hostile","model":"m","x":)" + repeated("[", 100'000) + repeated("]", 100'000) + "}"},
      {"a number beyond a double", R"({"appID":"hostile","model":"m","x":1e400})"},
      {"a lone high surrogate", in_content("\\ud83d")},
      {"a lone low surrogate", in_content("\\ude00")},
      {"raw surrogate bytes", in_content("\xed\xa0\x80")},
      {"overlong UTF-8", in_content("\xc0\xaf")},
      {"bytes beyond U+10FFFF", in_content("\xf5\x80\x80\x80")},
      {"a NUL byte", in_content(std::string("\0", 1))},
      {"an escaped NUL", in_content("\\u0000")},
      {"a NUL byte behind the document", in_content("x") + std::string("\0", 1)},
      {"UTF-16", std::string("\xff\xfe{\0}\0", 6)},
      {"two documents", in_content("x") + in_content("y")},
  };
}

std::vector<Case> framing_tricks() {
  const std::string body = chat_body("hostile", "x");
  const std::string length = "Content-Length: " + std::to_string(body.size()) + "\r\n";
  return {
      {"both lengths", post_head(length + "Transfer-Encoding: chunked\r\n") + body},
      {"two lengths that differ", post_head(length + "Content-Length: 1\r\n") + body},
      {"two lengths that agree", post_head(length + length) + body},
      {"a list of lengths", post_head("Content-Length: 5, 5\r\n") + body},
      {"a negative length", post_head("Content-Length: -1\r\n") + body},
      {"a length beyond 64 bits", post_head("Content-Length: 18446744073709551617\r\n") + body},
      {"chunk size -2", post_head("Transfer-Encoding: chunked\r\n") + "-2\r\n" + body},
      {"chunk size beyond 64 bits", post_head("Transfer-Encoding: chunked\r\n") + "10000000000000001\r\n" + body},
      {"chunks within chunks", post_head("Transfer-Encoding: chunked, chunked\r\n") + "0\r\n\r\n"},
      {"an unknown transfer encoding", post_head("Transfer-Encoding: xchunked\r\n") + "0\r\n\r\n"},
      {"a space before the colon", post_head("Transfer-Encoding : chunked\r\n") + "0\r\n\r\n"},
      {"a folded header", post_head("X: a\r\n b\r\n" + length) + body},
      {"ten thousand headers", post_head(repeated("X: y\r\n", 10'000))},
      {"one header of a megabyte", post_head("X: " + std::string(1 << 20, 'y') + "\r\n")},
      {"a path of a megabyte", "GET /" + std::string(1 << 20, 'a') + " HTTP/1.1\r\nHost: x\r\n\r\n"},
      {"gzip", post_head("Content-Encoding: gzip\r\n" + length) + body},
      {"gzipped multipart", post_head("Content-Encoding: gzip\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 3\r\n") + "\x1f\x8b\x08"},
      {"multipart", post_head("Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 3\r\n") + "--b"},
      {"garbage", repeated("\x80\x00\xff garbage ", 1000)},
      {"a newer HTTP", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
  };
}

// The status of the first answer, 0 when the connection was closed without one.
int first_status(Connection& connection) {
  try {
    return connection.read_head().status;
  } catch (const std::runtime_error&) {
    return 0;
  }
}

}  // namespace

TEST_CASE("hostile JSON is refused whole, and nothing of it is stored (3.1)", "[hostile]") {
  const Shared world;
  for (const Case& hostile : refused_bodies()) {
    CAPTURE(hostile.what);
    for (const char* path : {"/llmchat/", "/llmprep/"}) check_error(world->post(path, hostile.bytes), 422);
  }
  CHECK(world->database.conversation("hostile").empty());
  CHECK(world->get("/").status() == 200);
}

TEST_CASE("framing tricks end in a 4xx, a 505 or a closed connection, and never in a stored message (1.3, 1.5)", "[hostile]") {
  World world;
  CHECK(world.get("/").status() == 200);
  const double before_mib = resident_mib(world.chatterd->pid());
  for (const Case& hostile : framing_tricks()) {
    CAPTURE(hostile.what);
    Connection connection(world.endpoint);
    connection.send(hostile.bytes);
    const int status = first_status(connection);
    CHECK((status == 0 || status == 505 || (status >= 400 && status < 500)));
  }
  CHECK(world.get("/").status() == 200);
  CHECK(world.database.conversation("hostile").empty());
  CHECK(world.ollama.exchanges().empty());
  CHECK(resident_mib(world.chatterd->pid()) - before_mib < 16);
}

TEST_CASE("a huge Range header is ignored (1.3)", "[hostile]") {
  const Shared world;
  Connection connection(world->endpoint);
  connection.send("GET / HTTP/1.1\r\nHost: x\r\nRange: bytes=" + repeated("0-1,", 1900) + "0-1\r\n\r\n");
  CHECK(connection.read_response().status() == 200);
}

TEST_CASE("garbage behind a whole request spoils only what comes after it (1.5)", "[hostile]") {
  const Shared world;
  Connection connection(world->endpoint);
  connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n\x01\x02garbage\r\n\r\n");
  CHECK(connection.read_response().status() == 200);
  CHECK(connection.read_response().status() == 400);
  CHECK_FALSE(connection.read_raw().has_value());
}

TEST_CASE("SQL, shell and markup in a message are stored and sent on byte for byte (3.2)", "[hostile]") {
  const Shared world;
  world->ollama.answer_with(answer_tokens({"ok"}));
  const std::vector<std::string> texts = {"'); DROP TABLE chatts; --", "$1 %s %n {0}", "`id` $(id) ; | & > /dev/null", "<script>alert(1)</script>",
                                          "\\' \\\\ \" \x7f", "a\r\nb\n\nevent: x\ndata: y", "\xe2\x80\xa8\xe2\x80\xa9 \xf0\x9f\x98\x80", std::string(70'000, 'x')};
  for (const std::string& text : texts) {
    const std::string app = fresh_app();
    const std::string body = R"({"appID":")" + app + R"(","model":"m","messages":[{"role":"user","content":)" + json_string(text) + "}]}";
    world->chat(body);
    const auto rows = world->database.conversation(app);
    REQUIRE_FALSE(rows.empty());
    CHECK(rows[0].at(1) == text);
  }
}

TEST_CASE("line ends and field names in a model's text make no event of their own, also split over tokens (3.8)", "[hostile]") {
  const Shared world;
  const std::vector<std::string> tokens = {"a\r", "\n\r\n", "\n", "event: error", "\ndata: x\n\n", "\xe2\x80\xa8", "id: 1\rretry: 5\n\n: ping"};
  world->ollama.answer_with(answer_tokens(tokens));
  const auto events = world->chat(chat_body(fresh_app(), "x"));
  REQUIRE(events.size() == tokens.size() + 1);
  for (size_t i = 0; i < tokens.size(); ++i) {
    CHECK(events[i].type == "message");
    CHECK(events[i].data == token_line(tokens[i]));
  }
}

TEST_CASE("line ends in an error's text of Ollama's are only text (3.8)", "[hostile]") {
  const Shared world;
  const std::string text = "x\r\n\r\nevent: y\ndata: z\n\n\xe2\x80\xa9";
  world->ollama.answer_with(answer_lines({error_line(text), done_line()}));
  const auto events = world->chat(chat_body(fresh_app(), "x"));
  REQUIRE(events.size() == 2);
  CHECK(error_event_text(events[0]) == text);
}
