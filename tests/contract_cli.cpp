// Contract section 6: options, environment, exit statuses, addresses, starting with others away.
#include <algorithm>
#include <csignal>
#include <fstream>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Exit 2 and one line on standard error that names what is wrong.
void check_refused(const Finished& finished, const std::string& named) {
  INFO(finished.text());
  CHECK(finished.status == 2);
  CHECK(holds(finished.err, named));
  CHECK(lines_of(finished.err).size() == 1);
}

bool has_ipv6() {
  std::ifstream addresses("/proc/net/if_inet6");
  for (std::string line; std::getline(addresses, line);) {
    if (line.rfind("00000000000000000000000000000001", 0) == 0) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("--help lists every option with its default and exits with 0 (6)", "[cli]") {
  const Finished help = run_chatterd({"--help"});
  INFO(help.text());
  CHECK(help.status == 0);
  for (const char* option : {"--host", "--port", "--cert", "--key", "--http", "--db", "--db-pool", "--ollama", "--max-body",
                             "--max-streams", "--keep-whitespace", "--help", "--version", "--check"}) {
    INFO(option);
    CHECK(holds(help.out, option));
  }
  for (const char* value : {"443", "http://localhost:11434", "4194304", "1024", "host=localhost user=chatter dbname=chatterdb", "CHATTERD_"}) {
    INFO(value);
    CHECK(holds(help.out, value));
  }
  CHECK(help.err.empty());
}

TEST_CASE("--version says one line and exits with 0 (6)", "[cli]") {
  const Finished version = run_chatterd({"--version"});
  INFO(version.text());
  CHECK(version.status == 0);
  CHECK(lines_of(version.out).size() == 1);
  CHECK(holds(version.out, "chatterd"));
}

TEST_CASE("a wrong option or value is one line that says which, and exit 2 (6)", "[cli]") {
  const std::vector<std::pair<Arguments, std::string>> cases = {
      {{"--no-such-option"}, "--no-such-option"}, {{"--no-such-option", "1"}, "--no-such-option"},
      {{"stray"}, "stray"},                       {{"-p", "80"}, "-p"},
      {{"--port"}, "--port"},                     {{"--port", "abc"}, "--port"},
      {{"--port", "65536"}, "--port"},            {{"--port", "-1"}, "--port"},
      {{"--port", ""}, "--port"},                 {{"--port", "80x"}, "--port"},
      {{"--max-body", "lots"}, "--max-body"},     {{"--max-streams", "0"}, "--max-streams"},
      {{"--db-pool", "0"}, "--db-pool"},          {{"--db-pool", "99999999999999999999"}, "--db-pool"},
      {{"--turn-wait", "soon"}, "--turn-wait"},   {{"--ollama-grace", "-1"}, "--ollama-grace"}};
  for (const auto& [arguments, named] : cases) check_refused(run_chatterd(arguments), named);
}

TEST_CASE("a value that only its part can judge is refused as well, with exit 2 (6)", "[cli]") {
  const Database database;
  const TempFolder folder;
  const Certificate& good = test_certificate();
  const std::string junk = folder.write("junk.pem", "not a certificate\n");
  const auto with = [&](const Arguments& more) {
    Arguments all = usual_arguments(database.conninfo(), "http://127.0.0.1:1");
    all.insert(all.end(), more.begin(), more.end());
    return run_chatterd(all, {}, 6000);
  };
  check_refused(with({"--ollama", "ftp://localhost"}), "--ollama");
  check_refused(with({"--ollama", "no url"}), "--ollama");
  check_refused(with({"--ollama", "http://localhost:99999"}), "--ollama");
  check_refused(with({"--db", "this is = not one"}), "--db");
  check_refused(with({"--db", "no_such_keyword=1"}), "--db");
  check_refused(with({"--host", "not an address"}), "--host");
  check_refused(with({"--cert", folder.file("missing.crt")}), "--cert");
  check_refused(with({"--key", folder.file("missing.key")}), "--key");
  check_refused(with({"--cert", junk}), "--cert");
  check_refused(with({"--key", junk}), "--key");
  const Certificate other = make_certificate(folder, "other");
  check_refused(with({"--cert", good.cert_path, "--key", other.key_path}), "--key");
}

TEST_CASE("a wrong environment variable is named, and exit 2 (6)", "[cli]") {
  check_refused(run_chatterd({}, {{"CHATTERD_PORT", "abc"}}), "CHATTERD_PORT");
  check_refused(run_chatterd({}, {{"CHATTERD_MAX_BODY", "-5"}}), "CHATTERD_MAX_BODY");
  check_refused(run_chatterd({}, {{"CHATTERD_HTTP", "perhaps"}}), "CHATTERD_HTTP");
}

TEST_CASE("the environment configures all that options do (6)", "[cli]") {
  Database database;
  ScriptedOllama ollama;
  ollama.answer_with(answer_tokens({"from  the environment"}));
  Chatterd chatterd({}, {{"CHATTERD_HOST", "127.0.0.1"}, {"CHATTERD_PORT", "0"}, {"CHATTERD_DB", database.conninfo()},
                         {"CHATTERD_OLLAMA", ollama.url()}, {"CHATTERD_CERT", test_certificate().cert_path},
                         {"CHATTERD_KEY", test_certificate().key_path}, {"CHATTERD_KEEP_WHITESPACE", "1"},
                         {"CHATTERD_MAX_BODY", "1000"}, {"CHATTERD_HTTP", "0"}});
  const Endpoint endpoint = chatterd.wait_until_ready();
  CHECK(endpoint.tls);
  CHECK(exchange(endpoint, {"POST", "/llmchat/", chat_body("app", "x"), {}}).status() == 200);
  CHECK(joined(database.wait_for_rows("app", 2)) == "user:x|assistant:from  the environment");
  CHECK(exchange(endpoint, {"POST", "/llmchat/", chat_body("app", std::string(1000, 'x')), {}}).status() == 413);
  CHECK(chatterd.stop() == 0);
}

TEST_CASE("a flag wins over its environment variable (6)", "[cli]") {
  Database database;
  ScriptedOllama right, wrong;
  right.answer_with(answer_tokens({"right"}));
  wrong.answer_with(answer_tokens({"wrong"}));
  Chatterd chatterd(usual_arguments(database.conninfo(), right.url()),
                    {{"CHATTERD_OLLAMA", wrong.url()}, {"CHATTERD_PORT", "1"}, {"CHATTERD_DB", "host=127.0.0.1 port=1"}});
  const Endpoint endpoint = chatterd.wait_until_ready();
  CHECK(exchange(endpoint, {"POST", "/llmchat/", chat_body("app", "x"), {}}).status() == 200);
  CHECK(joined(database.wait_for_rows("app", 2)) == "user:x|assistant:right");
  CHECK(wrong.exchanges().empty());
  CHECK(chatterd.stop() == 0);
}

TEST_CASE("what --db leaves open libpq's own variables say (6)", "[cli]") {
  Database database;
  ScriptedOllama ollama;
  const std::string port = std::to_string(Database::server_port());
  Arguments arguments = usual_arguments("dbname=" + database.name() + " user=" + Database::owner(), ollama.url());
  Chatterd chatterd(arguments, {{"PGHOST", "127.0.0.1"}, {"PGPORT", port}});
  const Endpoint endpoint = chatterd.wait_until_ready();
  CHECK(exchange(endpoint, {"GET", "/getchatts/", "", {}}).status() == 200);
  CHECK(chatterd.stop() == 0);
  // And without --db at all.
  arguments = {"--host", "127.0.0.1", "--port", "0", "--http", "--ollama", ollama.url()};
  Chatterd without(arguments, {{"PGHOST", "127.0.0.1"}, {"PGPORT", port}, {"PGUSER", Database::owner()}, {"PGDATABASE", database.name()}});
  CHECK(exchange(without.wait_until_ready(), {"GET", "/getchatts/", "", {}}).status() == 200);
  CHECK(without.stop() == 0);
}

TEST_CASE("the ready line stands once, ends in the address, and is about what is served (6)", "[cli]") {
  for (const bool tls : {true, false}) {
    World world({{}, {}, tls});
    CHECK(world.endpoint.tls == tls);
    CHECK(world.get("/").status() == 200);
    size_t lines = 0;
    for (const std::string& line : lines_of(world.chatterd->err())) {
      if (!holds(line, "listening on ")) continue;
      ++lines;
      const std::string end = (tls ? "https" : "http") + ("://127.0.0.1:" + std::to_string(world.endpoint.port));
      INFO(line);
      CHECK(line.substr(line.size() - std::min(line.size(), end.size())) == end);
    }
    CHECK(lines == 1);
    CHECK(world.chatterd->out().empty());
  }
}

TEST_CASE("without --host it serves IPv4 and IPv6, and the log shows IPv4 clients as such (6)", "[cli]") {
  Database database;
  ScriptedOllama ollama;
  Arguments arguments = usual_arguments(database.conninfo(), ollama.url());
  arguments.erase(arguments.begin(), arguments.begin() + 2);
  Chatterd chatterd(arguments);
  Endpoint endpoint = chatterd.wait_until_ready();
  CHECK(exchange(endpoint, {"GET", "/", "", {}}).status() == 200);
  CHECK_FALSE(chatterd.wait_for_log({"event=request", "client=127.0.0.1 "}).empty());
  if (has_ipv6()) {
    endpoint.address = "::1";
    CHECK(exchange(endpoint, {"GET", "/", "", {}}).status() == 200);
    CHECK_FALSE(chatterd.wait_for_log({"event=request", "::1"}).empty());
  }
  CHECK(chatterd.stop() == 0);
}

TEST_CASE("with --host 127.0.0.1 it serves that address only (6)", "[cli]") {
  const Shared world;
  CHECK_FALSE(try_connect("::1", world->endpoint.port, Deadline(1000)).is_open());
  CHECK_FALSE(try_connect("127.0.0.2", world->endpoint.port, Deadline(1000)).is_open());
}

TEST_CASE("a second one on the same port exits with 1 and says so (6)", "[cli]") {
  const Shared world;
  Arguments arguments = usual_arguments(world->database.conninfo(), world->ollama.url());
  arguments.insert(arguments.end(), {"--port", std::to_string(world->endpoint.port)});
  const Finished second = run_chatterd(arguments);
  INFO(second.text());
  CHECK(second.status == 1);
  CHECK(holds(second.err, std::to_string(world->endpoint.port)));
  CHECK_FALSE(holds(second.err, "listening on http"));
  CHECK(world->get("/").status() == 200);
}

TEST_CASE("SIGTERM and SIGINT end it with 0, also with idle connections open (6)", "[cli]") {
  for (const int number : {SIGTERM, SIGINT}) {
    World world;
    Connection idle(world.endpoint);
    const Fd silent = connect_to("127.0.0.1", world.endpoint.port, Deadline(kPatienceMs));
    const auto before = Clock::now();
    world.chatterd->signal(number);
    CHECK(world.chatterd->wait_exit(kPatienceMs) == 0);
    CHECK(ms_between(before, Clock::now()) < 5000);
  }
}

TEST_CASE("after a stop the port can be taken again at once (6)", "[cli]") {
  Database database;
  ScriptedOllama ollama;
  const int port = free_port();
  Arguments arguments = usual_arguments(database.conninfo(), ollama.url());
  arguments.insert(arguments.end(), {"--port", std::to_string(port)});
  for (int start = 0; start < 3; ++start) {
    Chatterd chatterd(arguments);
    const Endpoint endpoint = chatterd.wait_until_ready();
    Connection kept(endpoint);
    kept.send(bytes_of({"GET", "/", "", {}}));
    CHECK(kept.read_response().status() == 200);
    CHECK(endpoint.port == port);
    CHECK(chatterd.stop() == 0);
  }
}

TEST_CASE("it starts while PostgreSQL is away, says so, serves what it can, and has the table once it comes (6)", "[cli]") {
  Database database;
  ScriptedOllama ollama;
  ollama.answer_with(answer_tokens({"ok"}));
  TcpProxy proxy(Database::server_address(), Database::server_port());
  proxy.refuse();
  Chatterd chatterd(usual_arguments(database.conninfo(proxy.port()), ollama.url()));
  const Endpoint endpoint = chatterd.wait_until_ready();
  INFO(chatterd.err());
  CHECK(holds(lower_case(chatterd.err()), "database"));
  CHECK(exchange(endpoint, {"GET", "/", "", {}}).status() == 200);
  check_error(exchange(endpoint, {"GET", "/getchatts/", "", {}}), 503);
  check_error(exchange(endpoint, {"POST", "/llmchat/", chat_body("app", "x"), {}}), 503);
  CHECK(exchange(endpoint, {"POST", "/llmprompt/", R"({"model":"m","prompt":"x"})", {}}).status() == 200);
  proxy.pass();
  REQUIRE(eventually([&] { return exchange(endpoint, {"GET", "/getchatts/", "", {}}).status() == 200; }));
  CHECK(exchange(endpoint, {"POST", "/llmchat/", chat_body("app", "y"), {}}).status() == 200);
  CHECK(joined(database.wait_for_rows("app", 2)) == "user:y|assistant:ok");
  CHECK(chatterd.stop() == 0);
}

TEST_CASE("it starts while Ollama is away, says so, and works once it comes (6)", "[cli]") {
  Database database;
  Fd nobody = bind_loopback(0);
  Chatterd chatterd(usual_arguments(database.conninfo(), url_of(nobody)));
  const Endpoint endpoint = chatterd.wait_until_ready();
  CHECK_FALSE(chatterd.wait_for_log({"llama"}).empty());
  CHECK(exchange(endpoint, {"POST", "/llmchat/", chat_body("app", "x"), {}}).status() == 502);
  ScriptedOllama ollama(std::move(nobody));
  ollama.answer_with(answer_tokens({"ok"}));
  CHECK(exchange(endpoint, {"POST", "/llmchat/", chat_body("app", "y"), {}}).status() == 200);
  CHECK(chatterd.stop() == 0);
}

TEST_CASE("SIGTERM ends it also while PostgreSQL does not answer (6)", "[cli]") {
  const Database database;
  TcpProxy proxy(Database::server_address(), Database::server_port());
  proxy.freeze();
  Chatterd chatterd(usual_arguments(database.conninfo(proxy.port()), "http://127.0.0.1:1"));
  chatterd.wait_until_ready();
  const auto before = Clock::now();
  CHECK(chatterd.stop() == 0);
  CHECK(ms_between(before, Clock::now()) < 8000);
}

TEST_CASE("no password is shown in the log, in an answer or by --check (1.4)", "[cli]") {
  const Database database;
  const std::string conninfo = "host=127.0.0.1 port=1 user=u dbname=d password=sesame";
  Chatterd chatterd(usual_arguments(conninfo, "http://127.0.0.1:1"));
  const Endpoint endpoint = chatterd.wait_until_ready();
  const Response response = exchange(endpoint, {"GET", "/getchatts/", "", {}});
  check_error(response, 503);
  CHECK_FALSE(holds(response.body, "sesame"));
  CHECK(chatterd.stop() == 0);
  CHECK_FALSE(holds(chatterd.err(), "sesame"));
  Arguments check = usual_arguments(conninfo, "http://127.0.0.1:1");
  check.emplace_back("--check");
  const Finished checked = run_chatterd(check);
  CHECK_FALSE(holds(checked.out + checked.err, "sesame"));
  CHECK_FALSE(holds(run_chatterd({"--db", "password=sesame nonsense"}).err, "sesame"));
}

TEST_CASE("TLS below 1.2 is refused (1)", "[cli]") {
  const Shared world;
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  SSL_CTX_set_security_level(context.get(), 0);
  for (const int version : {TLS1_1_VERSION, TLS1_2_VERSION, TLS1_3_VERSION}) {
    SSL_CTX_set_min_proto_version(context.get(), version);
    SSL_CTX_set_max_proto_version(context.get(), version);
    const Fd fd = connect_to("127.0.0.1", world->endpoint.port, Deadline(kPatienceMs));
    const std::unique_ptr<SSL, void (*)(SSL*)> ssl(SSL_new(context.get()), SSL_free);
    SSL_set_fd(ssl.get(), fd.get());
    INFO("version " << std::hex << version);
    CHECK((SSL_connect(ssl.get()) == 1) == (version != TLS1_1_VERSION));
  }
}

TEST_CASE("all certificates of --cert are shown to clients, the server's own first (6)", "[cli]") {
  const TempFolder folder;
  const Certificate own = make_certificate(folder, "own", 30, 7);
  const Certificate issuer = make_certificate(folder, "issuer", 30, 8);
  std::ofstream(own.cert_path, std::ios::app) << std::ifstream(issuer.cert_path).rdbuf();
  const World world({{"--cert", own.cert_path, "--key", own.key_path}});
  CHECK(Connection(world.endpoint).certificate_serials() == std::vector<long>{7, 8});
}

TEST_CASE("a TLS client resumes its session, whatever it asked for when it began that (1)", "[cli]") {
  const Shared world;
  Connection first(world->endpoint);
  SECTION("an answer, after which it leaves") {
    first.send(bytes_of({"GET", "/", "", {{"Connection", "close"}}}));
    CHECK(first.read_response().status() == 200);
  }
  SECTION("a stream") {
    first.send(bytes_of({"POST", "/llmchat/", chat_body(fresh_app(), "hello")}));
    CHECK(first.read_response().status() == 200);
  }
  SECTION("a request that comes in pieces") {
    first.send_in_pieces(bytes_of({"POST", "/postchatt/", R"({"username":"u","message":"m"})"}), 7);
    CHECK(first.read_response().status() == 200);
  }
  SECTION("nothing") {
    for (const Deadline deadline(kPatienceMs); !first.session() && !deadline.passed();) CHECK(first.stays_silent(50));
  }
  const TlsSession session = first.session();
  REQUIRE(session);
  CHECK_FALSE(first.resumed());
  Connection second(world->endpoint, session.get());
  CHECK(second.resumed());
  second.send(bytes_of({"GET", "/"}));
  CHECK(second.read_response().status() == 200);
  // And so on: each connection has a ticket of its own.
  CHECK(second.session());
}
