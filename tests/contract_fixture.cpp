#include "tests/contract_fixture.hpp"

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <regex>

namespace contract {
namespace {

// The shared world with its verdict at the end of the run, when Catch2 no longer takes assertions.
struct LastWorld {
  std::unique_ptr<World> world;
  ~LastWorld() {
    if (!world) return;
    const std::string complaint = world->stop_unjudged();
    if (complaint.empty()) return;
    std::fprintf(stderr, "the shared chatterd %s\n", complaint.c_str());
    std::_Exit(1);
  }
};

World& shared_world() {
  static LastWorld last;
  // One that died has failed its test; the others get a new one.
  if (last.world && last.world->chatterd->wait_exit(0)) {
    last.world->stop_unjudged();
    last.world.reset();
  }
  if (!last.world) last.world = std::make_unique<World>(Setup{{"--turn-wait", "1"}});
  return *last.world;
}

std::string fresh(const char* kind) {
  static int count = 0;
  return kind + std::to_string(++count) + "-";
}

}  // namespace

std::string fresh_app() { return fresh("app-"); }
std::string fresh_mark() { return fresh("mark-"); }

std::string chat_body(std::string_view app, std::string_view prompt, std::string_view more) {
  return R"({"appID":)" + json_string(app) + R"(,"model":"m","messages":[{"role":"user","content":)" +
         json_string(prompt) + R"(}],"stream":true)" + std::string(more) + "}";
}

Stream::Stream(const Endpoint& endpoint, const std::string& body, const std::string& path) : connection(endpoint) {
  connection.send(bytes_of({"POST", path, body, {}}));
}

void Stream::expect_ok(int patience_ms) {
  head = connection.read_head(patience_ms);
  if (head.status != 200) bytes = connection.read_body_to_end();
  INFO(head.raw << bytes);
  REQUIRE(head.status == 200);
}

bool Stream::read_more(int patience_ms) {
  if (head.status == 0) expect_ok(patience_ms);
  const auto more = connection.read_body_some(patience_ms);
  if (!more) return false;
  bytes += *more;
  parser_.feed(*more);
  return true;
}

const std::vector<SseEvent>& Stream::events(size_t count, int patience_ms) {
  const Deadline deadline(patience_ms);
  while (parser_.events().size() < count && read_more(deadline.left_ms())) {
  }
  INFO("the stream so far: " << bytes);
  REQUIRE(parser_.events().size() >= count);
  return parser_.events();
}

void Stream::read_until(std::string_view text, int patience_ms) {
  const Deadline deadline(patience_ms);
  while (bytes.find(text) == std::string::npos && read_more(deadline.left_ms())) {
  }
  INFO("the stream so far: " << bytes << "\nwaited for: " << text);
  REQUIRE(bytes.find(text) != std::string::npos);
}

std::vector<SseEvent> Stream::rest(int patience_ms) {
  const Deadline deadline(patience_ms);
  while (read_more(deadline.left_ms())) {
  }
  INFO("the stream: " << bytes);
  CHECK(connection.complete());
  return parse_sse(bytes);
}

Arguments usual_arguments(const std::string& conninfo, const std::string& ollama_url, bool tls) {
  Arguments arguments{"--host", "127.0.0.1", "--port", "0", "--db", conninfo, "--ollama", ollama_url};
  if (!tls) {
    arguments.emplace_back("--http");
    return arguments;
  }
  const Certificate& certificate = test_certificate();
  arguments.insert(arguments.end(), {"--cert", certificate.cert_path, "--key", certificate.key_path});
  return arguments;
}

World::World(const Setup& setup) {
  if (!setup.sql.empty()) database.run(setup.sql);
  if (setup.database_proxy) {
    database_proxy = std::make_unique<TcpProxy>(Database::server_address(), Database::server_port());
  }
  const std::string conninfo = database.conninfo(database_proxy ? database_proxy->port() : 0);
  Arguments arguments = usual_arguments(conninfo, ollama.url(), setup.tls);
  arguments.insert(arguments.end(), setup.arguments.begin(), setup.arguments.end());
  chatterd = std::make_unique<Chatterd>(arguments, setup.environment);
  endpoint = chatterd->wait_until_ready();
}

World::~World() {
  if (unjudged_) return;
  if (!stopped_ && !chatterd->wait_exit(0)) stop();
  const std::string complaint = unexpected_lines(chatterd->err(), errors_expected_);
  INFO("unexpected in the log:\n" << complaint);
  CHECK(complaint.empty());
}

void World::stop() {
  stopped_ = true;
  const auto status = chatterd->stop();
  INFO("after SIGTERM; the log:\n" << chatterd->err());
  CHECK(status.has_value());
  CHECK(status.value_or(-1) == 0);
}

std::vector<SseEvent> World::chat(const std::string& body) const {
  Stream stream(endpoint, body);
  stream.expect_ok();
  return stream.rest();
}

std::string World::stop_unjudged() {
  unjudged_ = true;
  const auto status = chatterd->stop();
  if (status != 0) return "ended with status " + std::to_string(status.value_or(-1)) + ":\n" + chatterd->err();
  const std::string lines = unexpected_lines(chatterd->err(), true);
  return lines.empty() ? "" : "logged:\n" + lines;
}

Shared::Shared() : world_(shared_world()), log_start_(world_.chatterd->err().size()) {
  world_.ollama.answer_with(answer_tokens({"Hello", ", world"}));
}

Shared::~Shared() {
  const std::string complaint = unexpected_lines(world_.chatterd->log_from(log_start_), false);
  INFO("unexpected in the log:\n" << complaint);
  CHECK(complaint.empty());
  // A dead process would make each further test fail for the wrong reason.
  CHECK_FALSE(world_.chatterd->wait_exit(0).has_value());
}

std::string error_text(std::string_view body) {
  const auto json = nlohmann::json::parse(body, nullptr, false);
  INFO("not an object of one string `error`: " << body);
  REQUIRE(json.is_object());
  REQUIRE(json.size() == 1);
  REQUIRE(json.contains("error"));
  REQUIRE(json["error"].is_string());
  return json["error"].get<std::string>();
}

void check_error(const Response& response, int status) {
  INFO(response.text());
  CHECK(response.status() == status);
  CHECK(response.complete);
  CHECK(response.head.count("X-Request-Id") == 1);
  CHECK_FALSE(response.head.header("X-Request-Id").empty());
  CHECK(response.head.header("Content-Type").rfind("application/json", 0) == 0);
  const std::string text = error_text(response.body);
  CHECK_FALSE(text.empty());
  CHECK(text.find('\n') == std::string::npos);
  for (const char* leak : {"SELECT", "INSERT", "DELETE FROM", "chatts_", "dbname=", "user=", "/tmp/", ".cpp", "LINE 1",
                           "SQLSTATE", "json.exception"}) {
    INFO("it must not show: " << leak);
    CHECK(text.find(leak) == std::string::npos);
  }
}

std::string error_event_text(const SseEvent& event) {
  INFO("the event: " << event.type << ": " << event.data);
  REQUIRE(event.type == "error");
  REQUIRE(event.data.rfind("{ \"error\": \"", 0) == 0);
  REQUIRE(event.data.size() > 14);
  REQUIRE(event.data.substr(event.data.size() - 3) == "\" }");
  const std::string text = error_text(event.data);
  REQUIRE_FALSE(text.empty());
  return text;
}

std::string contents_sent(const Exchange& exchange) {
  std::string all;
  const auto body = nlohmann::json::parse(exchange.request().body);
  for (const auto& message : body["messages"]) all += message["content"].get<std::string>() + ",";
  return all;
}

double ollama_saw_it_after_ms(const Exchange& exchange, Clock::time_point left) {
  REQUIRE(eventually([&] { return exchange.client_left().has_value(); }));
  return ms_between(left, *exchange.client_left());
}

bool is_rfc4122(std::string_view text) {
  static const std::regex uuid("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}");
  return std::regex_match(std::string(text), uuid);
}

std::string data_events(const std::vector<std::string>& lines) {
  std::string all;
  for (const std::string& line : lines) all += "data: " + line + "\n\n";
  return all;
}

std::string joined(const std::vector<Row>& rows) {
  std::string all;
  for (const Row& row : rows) {
    if (!all.empty()) all += "|";
    for (size_t i = 0; i < row.size(); ++i) all += (i == 0 ? "" : ":") + row[i];
  }
  return all;
}

std::string shown(const std::vector<SseEvent>& events) {
  std::string all;
  for (const SseEvent& event : events) all += event.type + ": " + event.data + "\n";
  return all;
}

}  // namespace contract
