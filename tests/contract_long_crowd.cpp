// Contract sections 3.7 and 3.9 for many long answers at once.
#include <atomic>
#include <mutex>
#include <thread>

#include "tests/long_answers.hpp"

using namespace contract;

TEST_CASE("many long streams at once are complete and in order, round after round on kept connections (3.7)", "[long]") {
  constexpr int kClients = 40, kRounds = 4, kLines = 30;
  for (const bool tls : {true, false}) {
    INFO((tls ? "HTTPS" : "HTTP"));
    World world({{}, {}, tls});
    const auto line_of = [](const std::string& prompt, int i) { return token_line(prompt + "-" + std::to_string(i) + " "); };
    world.ollama.answer_with([=](Conn& conn) {
      const std::string prompt = last_content(conn.request().body);
      conn.stream_head();
      for (int i = 0; i < kLines; ++i) {
        conn.line(line_of(prompt, i));
        conn.pause(2);
      }
      end_well(conn);
    });
    std::mutex mutex;
    std::vector<std::string> complaints;  // guarded by mutex
    std::vector<std::thread> clients;
    for (int client = 0; client < kClients; ++client) {
      clients.emplace_back([&, client] {
        std::string trouble;
        try {
          Connection connection(world.endpoint);
          for (int round = 0; round < kRounds && trouble.empty(); ++round) {
            const std::string prompt = "c" + std::to_string(client) + "r" + std::to_string(round);
            std::vector<std::string> lines;
            for (int i = 0; i < kLines; ++i) lines.push_back(line_of(prompt, i));
            lines.push_back(done_line());
            connection.send(bytes_of({"POST", "/llmchat/", chat_body("app" + std::to_string(client), prompt), {}}));
            const Response response = connection.read_response();
            if (response.status() != 200 || !response.complete || response.body != data_events(lines)) trouble = response.text();
          }
        } catch (const std::exception& error) {
          trouble = error.what();
        }
        const std::lock_guard lock(mutex);
        if (!trouble.empty()) complaints.push_back(trouble);
      });
    }
    for (std::thread& client : clients) client.join();
    INFO((complaints.empty() ? "" : complaints.front()));
    CHECK(complaints.empty());
    for (int client = 0; client < kClients; ++client) {
      const auto rows = world.database.wait_for_rows("app" + std::to_string(client), 2 * kRounds);
      REQUIRE(rows.size() == 2 * kRounds);
      for (int round = 0; round < kRounds; ++round) {
        const std::string prompt = "c" + std::to_string(client) + "r" + std::to_string(round);
        std::string reply;
        for (int i = 0; i < kLines; ++i) reply += prompt + "-" + std::to_string(i) + " ";
        CHECK(rows[static_cast<size_t>(2 * round)][1] == prompt);
        CHECK(rows[static_cast<size_t>(2 * round + 1)][1] == reply);
      }
    }
  }
}

TEST_CASE("streams that Ollama breaks off in great number leave the others alone (3.7, 3.9)", "[long]") {
  constexpr int kClients = 24, kRounds = 6, kLines = 14;
  World world;
  world.ollama.answer_with([](Conn& conn) {
    const std::string prompt = last_content(conn.request().body);
    conn.stream_head();
    for (int i = 0; i < kLines; ++i) {
      conn.line(token_line(prompt));
      conn.pause(2);
    }
    if (prompt == "breaks") return conn.rst();
    end_well(conn);
  });
  std::atomic<int> wrong{0}, late{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      const bool breaks = client % 2 == 0;
      try {
        for (int round = 0; round < kRounds; ++round) {
          const auto before = Clock::now();
          Connection connection(world.endpoint);
          connection.send(bytes_of({"POST", "/llmchat/", chat_body("a" + std::to_string(client), breaks ? "breaks" : "goes on"), {}}));
          const Response response = connection.read_response(2 * kPatienceMs);
          const auto events = parse_sse(response.body);
          const bool right = breaks ? !events.empty() && events.back().type == "error"
                                    : events.size() == kLines + 1 && events.back().data == done_line();
          if (!right || !response.complete) ++wrong;
          // A stream that is no longer watched comes to life again by its next ping only.
          if (ms_between(before, Clock::now()) > 12000) ++late;
        }
      } catch (const std::exception&) {
        ++wrong;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(wrong == 0);
  CHECK(late == 0);
}
