// Several servers in one connection string (docs/scaling.md, a hot standby): one that hangs, as a host
// without power does, must not keep chatterd from the other.
#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

// Two ways to one server, the first through a proxy that can hang.
struct TwoServers {
  TwoServers() { ollama.answer_with(answer_tokens({"ok"})); }

  void start() {
    std::string conninfo = database.conninfo();
    const std::string port = std::to_string(Database::server_port());
    const size_t at = conninfo.find("port=" + port);
    conninfo.replace(at, 5 + port.size(), "port=" + std::to_string(first.port()) + "," + port);
    conninfo.replace(conninfo.find("host=127.0.0.1"), 14, "host=127.0.0.1,127.0.0.1");
    chatterd = std::make_unique<Chatterd>(usual_arguments(conninfo, ollama.url()));
    endpoint = chatterd->wait_until_ready();
  }
  // The status, and how long it took.
  std::pair<int, double> turn() {
    const auto began = Clock::now();
    const Response response = exchange(endpoint, {"POST", "/llmchat/", chat_body("app", "hello"), {}});
    return {response.status(), ms_between(began, Clock::now())};
  }

  const Database database;
  ScriptedOllama ollama;
  TcpProxy first{"127.0.0.1", Database::server_port()};
  std::unique_ptr<Chatterd> chatterd;
  Endpoint endpoint;
};

}  // namespace

TEST_CASE("a first server that hangs leaves the second one time within a call, and is then tried last (3.3)", "[store]") {
  TwoServers servers;
  servers.first.freeze();
  servers.start();
  for (int i = 0; i < 3; ++i) {
    const auto [status, ms] = servers.turn();
    INFO("turn " << i << " took " << ms << " ms");
    CHECK(status == 200);
    CHECK(ms < 1200);  // less than the hanging server's share of --db-timeout, for chatterd asked it at start
  }
  CHECK(servers.first.open_connections() <= 1);
}

TEST_CASE("a server that hangs while it has connections costs one of them its time, then the other serves (3.3)", "[store]") {
  TwoServers servers;
  servers.start();
  // Several connections that are idle when it happens.
  std::vector<std::thread> clients;
  for (int i = 0; i < 6; ++i) clients.emplace_back([&servers] { exchange(servers.endpoint, {"GET", "/getchatts/", "", {}}); });
  for (std::thread& client : clients) client.join();
  CHECK(servers.turn().first == 200);
  CHECK(servers.first.open_connections() >= 1);
  servers.first.freeze();
  CHECK(servers.turn().first == 503);  // given up after --db-timeout: what became of it can't be known
  const auto [status, ms] = servers.turn();
  INFO("took " << ms << " ms");
  CHECK(status == 200);
  CHECK(ms < 2500);
}

TEST_CASE("two servers of which one refuses are one that serves (3.3)", "[store]") {
  TwoServers servers;
  servers.first.outage();
  servers.start();
  CHECK(servers.turn().first == 200);
  servers.first.pass();
  CHECK(servers.turn().first == 200);
}
