// The operator's listener (--admin): /healthz, /readyz and /metrics, as docs/operations.md describes them.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <thread>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

// Where this chatterd's log says that the admin listener is.
Endpoint admin_of(const Chatterd& chatterd) {
  const std::string line = chatterd.wait_for_log({"event=admin_listening"});
  INFO(chatterd.err());
  REQUIRE_FALSE(line.empty());
  return {"127.0.0.1", std::atoi(line.substr(line.rfind(':') + 1).c_str()), false};
}

struct AdminWorld : World {
  explicit AdminWorld(Setup setup = {}) : World(with_admin(std::move(setup))), admin(admin_of(*chatterd)) {}

  static Setup with_admin(Setup setup) {
    setup.arguments.insert(setup.arguments.end(), {"--admin", "127.0.0.1:0"});
    return setup;
  }
  Response ask(const std::string& path, const std::string& method = "GET") const { return exchange(admin, {method, path, "", {}}); }
  // What /readyz says once it is ready, or is not.
  nlohmann::json readiness(bool ready) const {
    Response response;
    const bool came = eventually([&] {
      response = ask("/readyz");
      return (response.status() == 200) == ready;
    });
    INFO(response.text());
    CHECK(came);
    CHECK(response.status() == (ready ? 200 : 503));
    const auto json = nlohmann::json::parse(response.body);
    CHECK(json["ready"] == ready);
    return json;
  }
  // One sample of /metrics by its name and labels; -1: there is none.
  double metric(const std::string& name) const {
    std::istringstream lines(ask("/metrics").body);
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind(name + " ", 0) == 0) return std::stod(line.substr(name.size() + 1));
    }
    return -1;
  }
  bool becomes(const std::string& name, double value) const {
    return eventually([&] { return metric(name) == value; });
  }

  Endpoint admin;
};

std::string requests(const std::string& route, int status) {
  return "chatterd_requests_total{route=\"" + route + "\",status=\"" + std::to_string(status) + "\"}";
}
std::string refused(const std::string& limit) { return "chatterd_refused_total{limit=\"" + limit + "\"}"; }
std::string ollama_errors(const std::string& kind) { return "chatterd_ollama_errors_total{kind=\"" + kind + "\"}"; }

Finished run_with_admin(const std::string& address) {
  const Database database;
  Arguments arguments = usual_arguments(database.conninfo(), "http://127.0.0.1:1");
  arguments.insert(arguments.end(), {"--admin", address});
  return run_chatterd(arguments, {}, 6000);
}

}  // namespace

TEST_CASE("/healthz, /readyz and /metrics answer on the address of --admin", "[admin]") {
  const AdminWorld world;
  const Response health = world.ask("/healthz");
  CHECK(health.status() == 200);
  CHECK(health.body == "ok");
  CHECK(world.ask("/healthz/").status() == 200);
  const Response metrics = world.ask("/metrics");
  CHECK(metrics.status() == 200);
  CHECK(metrics.complete);
  CHECK(metrics.head.header("Content-Type") == "text/plain; version=0.0.4; charset=utf-8");
  const auto json = world.readiness(true);
  for (const char* part : {"database", "ollama"}) {
    INFO(json.dump());
    CHECK(json[part]["usable"] == true);
    CHECK(json[part]["latency_ms"].is_number());
  }
}

TEST_CASE("the public address has none of them, and the admin's has none of the public routes", "[admin]") {
  const AdminWorld world;
  for (const char* path : {"/healthz", "/readyz", "/metrics"}) check_error(world.get(path), 404);
  for (const char* path : {"/", "/getchatts/", "/llmchat/"}) CHECK(world.ask(path).status() == 404);
  CHECK(world.admin.port != world.endpoint.port);
}

TEST_CASE("without --admin nothing of it is served anywhere", "[admin]") {
  const Shared world;
  for (const char* path : {"/healthz", "/readyz", "/metrics"}) check_error(world->get(path), 404);
  CHECK(world->chatterd->err().find("admin_listening") == std::string::npos);
}

TEST_CASE("the admin listener answers HEAD as GET, other methods with 405 and what is no request with 400", "[admin]") {
  const AdminWorld world;
  Connection connection(world.admin);
  connection.send(bytes_of({"HEAD", "/metrics", "", {}}));
  const ResponseHead head = connection.read_head(kPatienceMs, true);
  CHECK(head.status == 200);
  CHECK(std::atoi(head.header("Content-Length").c_str()) > 1000);
  CHECK(connection.read_raw() == std::nullopt);
  const Response post = world.ask("/metrics", "POST");
  CHECK(post.status() == 405);
  CHECK(post.head.header("Allow") == "GET, HEAD");
  Connection odd(world.admin);
  odd.send("\x16\x03\x01 nonsense\r\n\r\n");
  CHECK(odd.read_response().status() == 400);
  Connection large(world.admin);
  large.send("GET /" + std::string(100'000, 'x'));
  CHECK(large.read_response().status() >= 400);
}

TEST_CASE("a client that says nothing does not keep the admin listener from answering", "[admin]") {
  const AdminWorld world;
  std::vector<Connection> silent;
  for (int i = 0; i < 6; ++i) silent.emplace_back(world.admin);
  CHECK(world.ask("/healthz").status() == 200);
  // Each was closed in time, and none is held on to.
  for (Connection& connection : silent) CHECK(connection.read_raw() == std::nullopt);
}

TEST_CASE("/readyz names the database when it is away, and says so until it is back", "[admin]") {
  AdminWorld world({.arguments = {}, .database_proxy = true});
  world.readiness(true);
  world.database_proxy->outage();
  const auto away = world.readiness(false);
  INFO(away.dump());
  CHECK(away["database"]["usable"] == false);
  CHECK_FALSE(away["database"]["problem"].get<std::string>().empty());
  CHECK(away["ollama"]["usable"] == true);
  CHECK(world.becomes("chatterd_database_up", 0));
  CHECK(world.ask("/healthz").status() == 200);
  world.database_proxy->pass();
  world.readiness(true);
  CHECK(world.becomes("chatterd_database_up", 1));
}

TEST_CASE("/readyz does not wait for a database that hangs, nor behind a pool that is in use", "[admin]") {
  AdminWorld world({.arguments = {"--db-pool", "1", "--db-timeout", "10"}, .database_proxy = true});
  world.readiness(true);
  world.database_proxy->freeze();
  std::thread stuck([&world] { world.get("/getchatts/"); });  // has the pool's only connection
  double slowest_ms = 0;
  CHECK(eventually([&] {
    const auto asked = Clock::now();
    const int status = world.ask("/readyz").status();
    slowest_ms = std::max(slowest_ms, ms_between(asked, Clock::now()));
    return status == 503;
  }));
  CHECK(slowest_ms < 5000);  // 700 ms of its own; a machine at work may add to it
  world.database_proxy->outage();
  stuck.join();
}

TEST_CASE("/readyz names Ollama when it is away, and says so until it is back", "[admin]") {
  Database database;
  const ScriptedOllama ollama;
  TcpProxy proxy("127.0.0.1", ollama.port());
  Arguments arguments = usual_arguments(database.conninfo(), url_of(proxy.port()));
  arguments.insert(arguments.end(), {"--admin", "127.0.0.1:0"});
  Chatterd chatterd(arguments);
  chatterd.wait_until_ready();
  const Endpoint admin = admin_of(chatterd);
  const auto ready = [&] { return exchange(admin, {"GET", "/readyz", "", {}}); };
  REQUIRE(eventually([&] { return ready().status() == 200; }));
  proxy.outage();
  REQUIRE(eventually([&] { return ready().status() == 503; }));
  const auto json = nlohmann::json::parse(ready().body);
  INFO(json.dump());
  CHECK(json["ollama"]["usable"] == false);
  CHECK(json["database"]["usable"] == true);
  CHECK_FALSE(chatterd.wait_for_log({"event=ollama_away"}).empty());
  proxy.pass();
  CHECK_FALSE(chatterd.wait_for_log({"event=ollama_back"}).empty());
  CHECK(eventually([&] { return ready().status() == 200; }));
  CHECK(chatterd.stop() == 0);
}

TEST_CASE("many probes at once cause few looks at Ollama", "[admin]") {
  AdminWorld world;
  const auto looks = std::make_shared<std::atomic<int>>(0);
  world.ollama.answer_health_with([looks](Conn& conn) {
    ++*looks;
    conn.respond(200, R"({"version":"0"})");
  });
  const auto began = Clock::now();
  std::vector<std::thread> probes;
  for (int i = 0; i < 8; ++i) {
    probes.emplace_back([&world] {
      for (int n = 0; n < 20; ++n) world.ask("/readyz");
    });
  }
  for (std::thread& probe : probes) probe.join();
  // The look at the start may have been fresh enough for all of them.
  CHECK(eventually([&] { return world.ask("/readyz").status() == 200 && *looks >= 1; }));
  CHECK(*looks <= 2 + ms_between(began, Clock::now()) / 200);  // five a second at most
}

TEST_CASE("requests are counted by route and status, and unknown paths can't make series", "[admin]") {
  const AdminWorld world;
  CHECK(world.get("/").status() == 200);
  CHECK(world.post("/llmchat", "{}").status() == 422);
  for (int i = 0; i < 5; ++i) world.get("/path-" + std::to_string(i));
  CHECK(world.becomes(requests("other", 404), 5));
  CHECK(world.metric(requests("/", 200)) == 1);
  CHECK(world.metric(requests("/llmchat/", 422)) == 1);
  CHECK(world.metric("chatterd_request_duration_seconds_count{route=\"/\"}") == 1);
  CHECK(world.ask("/metrics").body.find("path-") == std::string::npos);
}

TEST_CASE("a client that asks for / only takes no worker, nor does one that leaves", "[admin]") {
  const AdminWorld world;
  for (int i = 0; i < 3; ++i) {
    Connection visitor(world.endpoint);
    visitor.send(bytes_of({"GET", "/", "", {}}));
    CHECK(visitor.read_response().status() == 200);
  }
  CHECK(world.becomes("chatterd_connections_open", 0));
  CHECK(world.metric("chatterd_worker_threads") == 0);
}

TEST_CASE("while answers are under way a thread waits for the next request (workers.hpp)", "[admin]") {
  AdminWorld world;
  const Gate gate;
  world.ollama.answer_with(answer_then_wait({"a"}, gate));
  std::vector<std::unique_ptr<Stream>> streams;
  for (int under_way = 1; under_way <= 3; ++under_way) {
    streams.push_back(std::make_unique<Stream>(world.endpoint, chat_body(fresh_app(), "x")));
    streams.back()->events(1);
    CHECK(world.becomes("chatterd_worker_threads", under_way + 1));
  }
  gate.open();
}

TEST_CASE("a stream's lines, bytes and times to the first token are counted", "[admin]") {
  AdminWorld world;
  const Gate gate;
  world.ollama.answer_with(answer_then_wait({"a", "b", "c"}, gate));
  Stream stream(world.endpoint, chat_body(fresh_app(), "x"));
  stream.events(3);
  CHECK(world.becomes("chatterd_streams_active", 1));
  CHECK(world.becomes("chatterd_relayed_lines_total", 3));
  CHECK(world.metric("chatterd_time_to_first_token_seconds_count{route=\"/llmchat/\"}") == 1);
  gate.open();
  stream.rest();
  CHECK(world.becomes("chatterd_streams_active", 0));
  CHECK(world.becomes("chatterd_relayed_lines_total", 4));
  CHECK(world.metric("chatterd_relayed_bytes_total") == static_cast<double>(stream.bytes.size()));
  CHECK(world.becomes("chatterd_replies_stored_total", 1));
  CHECK(world.metric("chatterd_ollama_first_token_seconds_count") == 1);
  // An answer in one document, without a line end.
  world.ollama.answer_with(answer_document(200, token_line("whole")));
  world.post("/llmchat/", chat_body(fresh_app(), "y"));
  CHECK(world.becomes("chatterd_relayed_lines_total", 5));
}

TEST_CASE("failures of Ollama are counted by kind", "[admin]") {
  AdminWorld world({.arguments = {"--ollama-timeout", "0.3", "--max-line", "2000"}});
  const auto fails_as = [&](const char* kind, const Script& script) {
    INFO(kind);
    world.ollama.answer_with(script);
    world.post("/llmchat/", chat_body(fresh_app(), "x"));
    CHECK(world.becomes(ollama_errors(kind), 1));
  };
  fails_as("status", answer_document(500, R"({"error":"no"})"));
  fails_as("error_line", answer_lines({token_line("a"), error_line("out of memory"), done_line()}));
  fails_as("too_large", answer_lines({token_line(std::string(3000, 'x'))}));
  fails_as("silent", answer_then_wait({"a"}, Gate()));
  fails_as("broken", [](Conn& conn) {
    conn.stream_head();
    conn.line(token_line("a"));
    conn.rst();
  });
  CHECK_FALSE(world.chatterd->wait_for_log({"level=warning", "status=200", "reason=\"ollama: an error in mid-answer\""}).empty());
  CHECK_FALSE(world.chatterd->wait_for_log({"level=warning", "status=200", "has not answered for too long"}).empty());
}

TEST_CASE("who was refused by which limit is counted, and is in the log", "[admin]") {
  AdminWorld world({.arguments = {"--max-streams", "1", "--max-body", "1000"}});
  const Gate gate;
  world.ollama.answer_with(answer_then_wait({"a"}, gate));
  Stream stream(world.endpoint, chat_body(fresh_app(), "x"));
  stream.events(1);
  check_error(world.post("/llmchat/", chat_body(fresh_app(), "y")), 503);
  check_error(world.post("/postchatt/", std::string(1001, ' ')), 413);
  CHECK(world.becomes(refused("max-streams"), 1));
  CHECK(world.becomes(refused("max-body"), 1));
  CHECK_FALSE(world.chatterd->wait_for_log({"event=request", "status=503", "limit=max-streams"}).empty());
  CHECK_FALSE(world.chatterd->wait_for_log({"event=request", "status=413", "limit=max-body"}).empty());
  gate.open();
  stream.rest();
}

TEST_CASE("a connection over --max-connections is counted, and said once", "[admin]") {
  AdminWorld world({.arguments = {"--max-connections", "1"}, .tls = false});
  Connection first(world.endpoint);
  first.send("GET / HT");  // begun, so not idle
  CHECK(eventually([&] {
    Connection another(world.endpoint);
    return world.metric(refused("max-connections")) >= 2;
  }));
  CHECK_FALSE(world.chatterd->wait_for_log({"event=connections_full", "limit=max-connections"}).empty());
  const std::string log = world.chatterd->err();
  CHECK(log.find("connections_full") == log.rfind("connections_full"));
}

TEST_CASE("clients that send no request in time are counted, in their handshake and after it", "[admin]") {
  AdminWorld world({.arguments = {"--header-timeout", "0.3"}});
  const Fd silent = connect_to(world.endpoint.address, world.endpoint.port, Deadline(kPatienceMs));
  CHECK(world.becomes(refused("header-timeout"), 1));
  Connection begun(world.endpoint);
  begun.send("GET / HT");
  CHECK(world.becomes(refused("header-timeout"), 2));
}

TEST_CASE("replies that wait for the database are counted until they are stored", "[admin]") {
  AdminWorld world({.arguments = {"--store-retry", "0.3"}, .database_proxy = true});
  const Gate gate;
  world.ollama.answer_with(answer_then_wait({"kept"}, gate));
  const std::string app = fresh_app();
  Stream stream(world.endpoint, chat_body(app, "x"));
  stream.events(1);
  world.database_proxy->outage();
  gate.open();
  stream.rest();
  CHECK(world.becomes("chatterd_replies_spooled_total", 1));
  CHECK(world.metric("chatterd_replies_retried_total") == 1);
  CHECK(world.metric("chatterd_replies_waiting") == 1);
  CHECK(world.metric("chatterd_database_errors_total{kind=\"unavailable\"}") >= 1);
  world.database_proxy->pass();
  CHECK(world.becomes("chatterd_replies_waiting", 0));
  CHECK(world.becomes("chatterd_replies_stored_total", 1));
  CHECK(world.metric("chatterd_replies_lost_total") == 0);
  CHECK(joined(world.database.wait_for_rows(app, 2)) == "user:x|assistant:kept");
}

TEST_CASE("a wrong --admin is one line and exit 2, a port that is taken a sentence and exit 1 (6)", "[admin]") {
  for (const char* wrong : {"9091", "localhost", ":9091", "::1:9091", "[::1]", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x", "no such host:1", "300.1.1.1:80"}) {
    const Finished finished = run_with_admin(wrong);
    INFO(wrong << "\n" << finished.text());
    CHECK(finished.status == 2);
    CHECK(finished.err.find("--admin") != std::string::npos);
    CHECK(lines_of(finished.err).size() == 1);
  }
  const Fd taken = listen_on_loopback(0);
  const Finished finished = run_with_admin("127.0.0.1:" + std::to_string(port_of(taken)));
  INFO(finished.text());
  CHECK(finished.status == 1);
  CHECK(finished.err.find("--admin") != std::string::npos);
  CHECK(lines_of(finished.err).size() == 1);
}

TEST_CASE("the admin listener ends with the server, also while a client of it says nothing", "[admin]") {
  AdminWorld world;
  Connection silent(world.admin);
  world.stop();
  CHECK_FALSE(try_connect("127.0.0.1", world.admin.port, Deadline(1000)).is_open());
}
