// Replies that can't be stored when their stream ends.
#include "tests/faults/world.hpp"

using namespace faults;

namespace {

const std::vector<std::string> kEvents = {"database_away", "reply_spooled", "replies_found_in_spool", "spooled_reply_stored"};
constexpr int kConversations = 8;

std::string app_name(int i) { return "kept-" + std::to_string(i); }

// Streams whose text has all come but for the last line, which waits for the gate.
Script reply_then_wait(const Gate& gate) {
  return [gate](Conn& conn) {
    conn.stream_head();
    for (const std::string& token : usual_tokens(prompt_of(conn.request()))) conn.line(token_line(token));
    conn.wait(gate);
    conn.line(done_line());
    conn.end_chunks();
  };
}

// Clients in mid-stream, whose streams end only after the database has gone.
std::vector<std::thread> begin_streams(World& world) {
  std::vector<std::thread> clients;
  for (int i = 0; i < kConversations; ++i) {
    clients.emplace_back([&world, i] { world.turn(app_name(i), app_name(i) + "#1"); });
  }
  for (int i = 0; i < kConversations; ++i) world.ollama.wait_for_request(app_name(i) + "#1");
  return clients;
}

// Every conversation is: prompt, its reply, and what came after while the reply was not yet there.
void expect_replies_in_place(const World& world) {
  for (int i = 0; i < kConversations; ++i) {
    const auto rows = world.wait_for_rows(app_name(i), 3);
    INFO(app_name(i) << " has " << rows.size() << " rows");
    REQUIRE(rows.size() == 3);
    CHECK(rows[0][1] == app_name(i) + "#1");
    CHECK(rows[1][0] == "assistant");
    CHECK(rows[1][1] == compacted(usual_reply(rows[0][1])));
    CHECK(rows[2][1] == app_name(i) + "#2");
  }
}

// While the replies still wait: messages that another program adds, and the checker has to know.
void add_messages_behind(World& world) {
  for (int i = 0; i < kConversations; ++i) {
    const std::string prompt = app_name(i) + "#2";
    world.sql("INSERT INTO chatts (name, message, id, appid) VALUES ('user', '" + prompt + "', gen_random_uuid(), '" + app_name(i) + "')");
    Turn added;
    added.prompt = prompt;
    added.outcome = Outcome::acknowledged;
    world.log.add(app_name(i), added);
  }
}

// Clients whose streams have ended when the database was gone; chatterd knows that it is.
std::vector<std::thread> lose_database_in_mid_stream(Cluster& cluster, World& world) {
  const Gate gate;
  world.ollama.answer_with(reply_then_wait(gate));
  std::vector<std::thread> clients = begin_streams(world);
  cluster.stop_immediately();
  gate.open();
  CHECK_FALSE(world.chatterd().wait_for_log({"event=database_away"}).empty());
  return clients;
}

enum class End { killed, stopped };

void lose_database_then_chatterd(End end) {
  Cluster cluster;
  World world({.arguments = {"--store-retry", "20"}, .cluster = &cluster, .events = kEvents});
  std::vector<std::thread> clients = lose_database_in_mid_stream(cluster, world);
  if (end == End::killed) {
    // Each stream's second try comes 250 ms after the reply was put on the disk.
    std::this_thread::sleep_for(std::chrono::milliseconds(world.within_ms(1000)));
    world.kill();
  } else {
    world.stop();
  }
  for (std::thread& client : clients) client.join();
  world.ollama.answer_with(talk());
  world.start();  // the database is still away
  CHECK(world.turn(app_name(0), app_name(0) + "#away").status == 503);
  cluster.start();
  world.kill();
  add_messages_behind(world);
  world.start();
  expect_replies_in_place(world);
  world.finish();
}

void lose_database_only(const std::string& store_retry) {
  Cluster cluster;
  World world({.arguments = {"--store-retry", store_retry}, .cluster = &cluster, .events = kEvents});
  std::vector<std::thread> clients = lose_database_in_mid_stream(cluster, world);
  if (store_retry == "0.3") CHECK_FALSE(world.chatterd().wait_for_log({"event=reply_spooled"}).empty());
  cluster.start();
  const auto began = Clock::now();
  for (int i = 0; i < kConversations; ++i) {
    const auto rows = world.wait_for_rows(app_name(i), 2);
    CHECK(rows.size() == 2);
    if (rows.size() == 2) CHECK(rows[1][1] == compacted(usual_reply(rows[0][1])));
  }
  report("all replies were there " + ms_text(ms_between(began, Clock::now())) + " after the database's return");
  for (std::thread& client : clients) client.join();
  world.ollama.answer_with(talk());
  world.finish();
}

}  // namespace

TEST_CASE("replies that could not be stored outlive kill -9 and are stored once, in their place", "[fault][short][spool]") {
  lose_database_then_chatterd(End::killed);
}

TEST_CASE("replies that could not be stored outlive SIGTERM and are stored once, in their place", "[fault][slow][spool]") {
  lose_database_then_chatterd(End::stopped);
}

TEST_CASE("replies that finish while the database is away are stored after it is back, by their streams", "[fault][slow][spool]") {
  lose_database_only("30");
}

TEST_CASE("replies whose streams gave up while the database was away are stored after it is back", "[fault][short][spool]") {
  lose_database_only("0.3");
}

TEST_CASE("replies of clients that left while the database was away are stored after it is back", "[fault][slow][spool]") {
  Cluster cluster;
  World world({.cluster = &cluster, .events = kEvents});
  const Gate never;
  world.ollama.answer_with(reply_then_wait(never));
  std::vector<Connection> clients;
  for (int i = 0; i < kConversations; ++i) {
    Connection& client = clients.emplace_back(world.endpoint());
    client.send(chat_request(app_name(i), app_name(i) + "#1"));
    CHECK(client.read_head().status == 200);
    std::string seen;
    while (seen.find(" end") == std::string::npos) seen += client.read_body_some().value_or(" end");
    Turn turn;
    turn.prompt = app_name(i) + "#1";
    turn.outcome = Outcome::acknowledged;
    turn.reply_due = true;
    world.log.add(app_name(i), turn);
  }
  cluster.stop_immediately();
  clients.clear();
  CHECK_FALSE(world.chatterd().wait_for_log({"event=database_away"}).empty());
  cluster.start();
  world.finish();
}
