// What the contract tests share: a chatterd with a database and an Ollama of its own, one such world that
// many tests use together, and the assertions that recur.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tests/catch.hpp"
#include "tests/harness/certificate.hpp"
#include "tests/harness/client.hpp"
#include "tests/harness/database.hpp"
#include "tests/harness/net.hpp"
#include "tests/harness/ollama_scripts.hpp"
#include "tests/harness/process.hpp"
#include "tests/harness/scripted_ollama.hpp"
#include "tests/harness/sse.hpp"
#include "tests/harness/tcp_proxy.hpp"

namespace contract {

using namespace harness;

// "app-1", "app-2", ...: a conversation that no other test has.
std::string fresh_app();
// The same for texts by which a test finds its request to Ollama.
std::string fresh_mark();

// {"appID":<app>,"model":"m","messages":[{"role":"user","content":<prompt>}],"stream":true<more>}
std::string chat_body(std::string_view app, std::string_view prompt, std::string_view more = "");

// How a chatterd is started. The usual arguments are --host 127.0.0.1 --port 0, certificate, database, Ollama.
struct Setup {
  Arguments arguments;  // after the usual ones
  Environment environment = {};
  bool tls = true;
  bool database_proxy = false;  // a TcpProxy between chatterd and PostgreSQL
  std::string sql = {};         // run before the start, as a superuser
};

// A streamed answer that is read while it comes.
class Stream {
 public:
  Stream(const Endpoint& endpoint, const std::string& body, const std::string& path = "/llmchat/");
  // Reads the headers and asserts 200.
  void expect_ok(int patience_ms = kPatienceMs);
  // Reads until there are this many events; asserts that they come.
  const std::vector<SseEvent>& events(size_t count, int patience_ms = kPatienceMs);
  // Reads until the bytes so far hold the text.
  void read_until(std::string_view text, int patience_ms = kPatienceMs);
  // Reads to the end, asserts that it ends cleanly and strictly; all events of the stream.
  std::vector<SseEvent> rest(int patience_ms = kPatienceMs);

  Connection connection;
  ResponseHead head;
  std::string bytes;  // of the body, so far

 private:
  bool read_more(int patience_ms);
  SseParser parser_;
};

// A chatterd with its surroundings. At its end it is stopped by SIGTERM and must exit with 0 and have
// logged nothing unexpected.
class World {
 public:
  explicit World(const Setup& setup = {});
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  Response send(const Request& request) const { return exchange(endpoint, request); }
  Response get(const std::string& path) const { return send({"GET", path, "", {}}); }
  Response post(const std::string& path, const std::string& body) const { return send({"POST", path, body, {}}); }
  // A chat whose stream is read to its end; asserts 200 and a strict stream.
  std::vector<SseEvent> chat(const std::string& body) const;
  void expect_errors() { errors_expected_ = true; }  // in the log
  [[nodiscard]] bool errors_expected() const { return errors_expected_; }
  // SIGTERM now; asserts exit status 0.
  void stop();
  // Ends it after the last test, when no assertion can be made any more: what is wrong, or nothing.
  std::string stop_unjudged();

  Database database;
  ScriptedOllama ollama;
  std::unique_ptr<TcpProxy> database_proxy;
  std::unique_ptr<Chatterd> chatterd;
  Endpoint endpoint;

 private:
  bool errors_expected_ = false;
  bool stopped_ = false;
  bool unjudged_ = false;
};

// The arguments that every World begins with, for tests that start chatterd themselves.
Arguments usual_arguments(const std::string& conninfo, const std::string& ollama_url, bool tls = true);

// A test's share of one world that lives to the end of the run, with default options but for a --turn-wait
// of 1 s. At the test's end its part of the log is judged.
class Shared {
 public:
  Shared();
  ~Shared();
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  World* operator->() const { return &world_; }
  World& operator*() const { return world_; }

 private:
  World& world_;
  size_t log_start_;
};

// This status and a body of exactly one key, `error`, with a sentence that leaks nothing.
void check_error(const Response& response, int status);
// The value of `error` in such a body.
std::string error_text(std::string_view body);
// An error event's data as chatterd writes it, { "error": <JSON string> }; its text.
std::string error_event_text(const SseEvent& event);
bool is_rfc4122(std::string_view text);
// The contents of the messages that Ollama was sent, a comma after each.
std::string contents_sent(const Exchange& exchange);
// How long after `left` Ollama saw the connection close; asserts that it did.
double ollama_saw_it_after_ms(const Exchange& exchange, Clock::time_point left);
// "data: <line>\n\n" for each.
std::string data_events(const std::vector<std::string>& lines);
std::string joined(const std::vector<Row>& rows);  // for comparison and messages: "user:hi|assistant:ho"
std::string shown(const std::vector<SseEvent>& events);

}  // namespace contract
