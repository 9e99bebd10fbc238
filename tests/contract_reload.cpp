// SIGHUP: what a reload takes over, what it leaves alone, and that no stream and no connection notices.
#include <sys/stat.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/contract_fixture.hpp"
#include "tests/harness/vitals.hpp"

using namespace contract;

namespace {

// A folder with a configuration file that the user chatterd becomes can read.
class Files {
 public:
  Files() { ::chmod(folder.file("").c_str(), 0755); }
  std::string write(const std::string& name, const std::string& content) const {
    // In one step, as a careful administrator's tools do.
    std::ofstream(folder.file(name + ".new"), std::ios::binary) << content;
    ::chmod(folder.file(name + ".new").c_str(), 0644);
    std::filesystem::rename(folder.file(name + ".new"), folder.file(name));
    return folder.file(name);
  }
  TempFolder folder;
};

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The line in the log that a reload ends with.
std::string reload(const Chatterd& chatterd) {
  const size_t from = chatterd.err().size();
  chatterd.signal(SIGHUP);
  return chatterd.wait_for_log({"event=reload"}, from);
}

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// A pair of certificate and key as texts.
struct Pem {
  std::string cert, key;
};

Pem make_pem(long serial) {
  const TempFolder folder;
  const Certificate made = make_certificate(folder, "made", 30, serial);
  return {content_of(made.cert_path), content_of(made.key_path)};
}

// Runs until a token has gone in; then so many more, then the end.
Script tokens_until(const Gate& gate) {
  return [gate](Conn& conn) {
    conn.stream_head();
    while (!gate.is_open()) {
      conn.line(token_line("t"));
      conn.pause(5);
    }
    conn.line(done_line());
    conn.end_chunks();
  };
}

}  // namespace

TEST_CASE("a reload takes new limits over from the configuration file, and a line that went means the default", "[reload]") {
  const Files files;
  const std::string env = files.write("env", "# limits\nCHATTERD_MAX_BODY=1000\nCHATTERD_IDLE_TIMEOUT=7\n");
  World world({{"--env-file", env}, {{"CHATTERD_MAX_BODY", "10"}}});
  Connection kept(world.endpoint);  // has its new limits with its next request
  const std::string body = R"({"name":"n","message":")" + std::string(2000, 'x') + "\"}";
  kept.send(bytes_of({"GET", "/", "", {}}));
  CHECK(has(kept.read_response().head.header("Keep-Alive"), "timeout=7,"));
  CHECK(world.post("/postchatt/", body).status() == 413);
  files.write("env", "CHATTERD_MAX_BODY='3000'\nCHATTERD_IDLE_TIMEOUT=8\nCHATTERD_MAX_STREAMS=1\n");
  CHECK(has(reload(*world.chatterd), R"(changed="--max-body --max-streams --idle-timeout")"));
  kept.send(bytes_of({"POST", "/postchatt/", body, {}}));
  const Response response = kept.read_response();
  CHECK(response.status() == 200);
  CHECK(has(response.head.header("Keep-Alive"), "timeout=8,"));
  Gate gate;
  world.ollama.answer_with(answer_then_wait({"a"}, gate));
  Stream stream(world.endpoint, chat_body("one", "x"));
  stream.events(1);
  check_error(world.post("/llmchat/", chat_body("two", "x")), 503);
  files.write("env", "");
  CHECK(has(reload(*world.chatterd), "event=reloaded"));
  Stream second(world.endpoint, chat_body("two", "x"));
  second.events(1);
  gate.open();
  CHECK(stream.rest().size() == 2);
  CHECK(second.rest().size() == 2);
  CHECK(world.post("/postchatt/", body + std::string(4000, ' ')).status() == 200);
}

TEST_CASE("a longer --db-timeout holds over connections to the database that are open already", "[reload]") {
  const Files files;
  const std::string env = files.write("env", "CHATTERD_DB_TIMEOUT=0.4\n");
  World world({{"--env-file", env}});
  REQUIRE(world.post("/postchatt/", R"({"name":"n","message":"first"})").status() == 200);
  files.write("env", "CHATTERD_DB_TIMEOUT=20\n");
  CHECK(has(reload(*world.chatterd), "changed=--db-timeout"));
  SqlConnection locker(world.database.conninfo());
  locker.run("BEGIN");
  locker.run("LOCK TABLE chatts");
  Connection client(world.endpoint);
  client.send(bytes_of({"POST", "/postchatt/", R"({"name":"n","message":"second"})", {}}));
  CHECK(client.stays_silent(800));
  locker.run("COMMIT");
  CHECK(client.read_response().status() == 200);
}

TEST_CASE("a bad value in the configuration file leaves all as it was, and is named (6)", "[reload]") {
  const Files files;
  const std::string env = files.write("env", "CHATTERD_RATE=0\n");
  World world({{"--env-file", env, "--http"}});
  world.endpoint.tls = false;
  world.expect_errors();
  for (const std::string bad : {"CHATTERD_MAX_BODY=10\nCHATTERD_DRAIN=soon\n", "CHATTERD_MAX_BODY=10\nCHATTERD_DRIAN=1\n", "CHATTERD_MAX_BODY=10\nCHATTERD_DRAIN='1\n"}) {
    files.write("env", bad);
    const std::string line = reload(*world.chatterd);
    CHECK(has(line, "event=reload_failed"));
    CHECK(has(line, "line 2"));
    CHECK(world.post("/postchatt/", R"({"name":"n","message":"longer than ten bytes"})").status() == 200);
  }
  std::filesystem::remove(env);
  CHECK(has(reload(*world.chatterd), "No such file"));
  files.write("env", "CHATTERD_MAX_BODY=10\n");
  CHECK(has(reload(*world.chatterd), "event=reloaded"));
  CHECK(world.post("/postchatt/", R"({"name":"n","message":"longer than ten bytes"})").status() == 413);
}

TEST_CASE("what needs a restart is named in a warning and stays as it is", "[reload]") {
  const Files files;
  const std::string env = files.write("env", "PGAPPNAME=one\n");
  World world({{"--env-file", env, "--http"}});
  world.endpoint.tls = false;
  files.write("env", "PGAPPNAME=two\nCHATTERD_DB_POOL=2\nCHATTERD_USER=nobody\nCHATTERD_DRAIN=3\n");
  const std::string line = reload(*world.chatterd);
  CHECK(has(line, "event=reloaded"));
  CHECK(has(line, "changed=--drain"));
  const std::string warning = world.chatterd->wait_for_log({"event=needs_restart"});
  CHECK(has(warning, "level=warning"));
  CHECK(has(warning, R"(options="--db-pool --user PGAPPNAME")"));
}

TEST_CASE("--check reads the configuration file, and a wrong one is a wrong configuration (6)", "[reload]") {
  const Files files;
  const Database database;
  // Where the database is comes by libpq's own variables.
  const std::string env = files.write("env", "CHATTERD_PORT=4433\nPGHOST=" + Database::server_address() + "\nPGPORT=" +
                                                 std::to_string(Database::server_port()) + "\nPGUSER=" + Database::owner() +
                                                 "\nPGDATABASE=\"" + database.name() + "\"\n");
  const Finished checked = run_chatterd({"--check", "--http", "--env-file", env});
  INFO(checked.text());
  CHECK(has(checked.out, "port 4433"));
  CHECK(has(checked.out, "ok    database"));
  files.write("env", "CHATTERD_PORT=none\n");
  const Finished wrong = run_chatterd({"--check", "--http"}, {{"CHATTERD_ENV_FILE", env}});
  CHECK(wrong.status == 2);
  CHECK(has(wrong.err, "env, line 1: CHATTERD_PORT: 'none' is not"));
  CHECK(run_chatterd({"--env-file", "/no/such/file"}).status == 2);
}

TEST_CASE("a key that only root may read stays, with a warning, when chatterd has given root up", "[reload]") {
  if (::geteuid() != 0) return;
  World world;  // its key is in a folder of root's
  CHECK(has(reload(*world.chatterd), "event=reloaded"));
  CHECK_FALSE(world.chatterd->wait_for_log({"event=certificate_kept", "level=warning"}).empty());
  CHECK(world.get("/").status() == 200);
}

TEST_CASE("a reload takes certificate and key from systemd's runtime folder where they are there, a start does not", "[reload]") {
  const Files files, runtime;
  const Pem old_pair = make_pem(5), new_pair = make_pem(6);
  const std::string cert = files.write("c.crt", old_pair.cert), key = files.write("c.key", old_pair.key);
  runtime.write("chatterd.crt", new_pair.cert);
  World world({{"--cert", cert, "--key", key}, {{"RUNTIME_DIRECTORY", runtime.folder.file("")}}});
  world.expect_errors();
  CHECK(Connection(world.endpoint).certificate_serials() == std::vector<long>{5});
  CHECK(has(reload(*world.chatterd), "event=reload_failed"));  // the certificate alone does not fit
  CHECK(Connection(world.endpoint).certificate_serials() == std::vector<long>{5});
  runtime.write("chatterd.key", new_pair.key);
  CHECK(has(reload(*world.chatterd), "event=reloaded"));
  CHECK(Connection(world.endpoint).certificate_serials() == std::vector<long>{6});
}

TEST_CASE("a hundred reloads with good and bad certificates under load: no stream and no client notices", "[reload]") {
  const Files files;
  Pem in_force = make_pem(1);
  const std::string cert = files.write("c.crt", in_force.cert), key = files.write("c.key", in_force.key);
  World world({{"--cert", cert, "--key", key}});
  world.expect_errors();
  Gate gate;
  world.ollama.answer_with(tokens_until(gate));
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 8; ++i) {
    streams.push_back(std::make_unique<Stream>(world.endpoint, chat_body(fresh_app(), "x")));
    streams.back()->events(1);
  }
  // Clients that connect all the while, and may see the old or the new one.
  std::atomic<bool> ended{false};
  std::atomic<int> answered{0}, failed{0};
  std::atomic<long> oldest{1}, newest{1};
  std::thread visitor([&] {
    while (!ended) {
      try {
        const long from = oldest;
        Connection connection(world.endpoint);
        const long serial = connection.certificate_serials().at(0);
        connection.send(bytes_of({"GET", "/", "", {}}));
        const bool good = connection.read_response().status() == 200 && serial >= from && serial <= newest;
        ++(good ? answered : failed);
      } catch (const std::exception&) {
        ++failed;
      }
    }
  });
  const auto try_reload = [&](const Pem& pair, bool good) {
    files.write("c.crt", pair.cert);
    files.write("c.key", pair.key);
    if (good) ++newest;
    const std::string line = reload(*world.chatterd);
    INFO(line);
    CHECK(has(line, good ? "event=reloaded" : "event=reload_failed"));
    if (good) oldest = newest.load();
    CHECK(Connection(world.endpoint).certificate_serials() == std::vector<long>{newest});
    for (const auto& stream : streams) stream->events(stream->events(1).size() + 1);
  };
  size_t descriptors = 0, memory = 0;
  for (int round = 0; round < 20; ++round) {
    const Pem next = make_pem(newest + 1);
    try_reload({in_force.cert, next.key}, false);                              // mismatched
    try_reload({next.cert.substr(0, next.cert.size() / 2), next.key}, false);  // half-written
    try_reload({"", ""}, false);
    std::filesystem::remove(key);
    CHECK(has(reload(*world.chatterd), "No such file"));
    try_reload(next, true);
    in_force = next;
    if (round != 3) continue;  // from here on nothing may grow
    descriptors = descriptors_of(world.chatterd->pid());
    memory = memory_kib(world.chatterd->pid());
  }
  ended = true;
  visitor.join();
  CHECK(failed == 0);
  CHECK(answered > 20);
  CHECK(eventually([&] { return descriptors_of(world.chatterd->pid()) <= descriptors; }));
  // AddressSanitizer keeps what is freed for a while; it looks for leaks itself at the end.
  if (!has(chatterd_binary(), "/asan/")) CHECK(memory_kib(world.chatterd->pid()) < memory + kMemoryNoiseKib);
  gate.open();
  for (const auto& stream : streams) {
    const auto events = stream->rest();
    CHECK(events.back().data == done_line());
  }
}
