// Contract section 1 (paths, methods, request ids) and the route `GET /`.
#include <set>

#include "tests/contract_fixture.hpp"

using namespace contract;

namespace {

struct Route {
  const char* path;  // with its slash
  const char* method;
};
constexpr Route kRoutes[] = {{"/llmprompt/", "POST"}, {"/getchatts/", "GET"}, {"/postchatt/", "POST"},
                             {"/llmchat/", "POST"},   {"/llmprep/", "POST"}};

std::string without_slash(std::string path) {
  path.pop_back();
  return path;
}

}  // namespace

TEST_CASE("GET / answers the JSON string EECS Reactive chatterd (2)", "[routes]") {
  const Shared world;
  const Response response = world->get("/");
  INFO(response.text());
  CHECK(response.status() == 200);
  CHECK(response.body == "\"EECS Reactive chatterd\"");
  CHECK(response.head.header("Content-Type").rfind("application/json", 0) == 0);
}

TEST_CASE("a path matches with and without its trailing slash, without a redirect (1.1)", "[routes]") {
  const Shared world;
  for (const Route& route : kRoutes) {
    for (const std::string& path : {std::string(route.path), without_slash(route.path)}) {
      // A wrong body shows that the route was found, whatever it does.
      const Response response = world->send({route.method, path, route.method[0] == 'P' ? "[]" : "", {}});
      INFO(path << " -> " << response.text());
      CHECK((response.status() == 200 || response.status() == 422 || response.status() == 400));
      CHECK(response.head.header("Location").empty());
    }
  }
}

TEST_CASE("a path with two trailing slashes or another case is unknown (1.1)", "[routes]") {
  const Shared world;
  check_error(world->get("/getchatts//"), 404);
  check_error(world->get("/GetChatts/"), 404);
  check_error(world->get("/getchattsx"), 404);
}

TEST_CASE("a query does not keep a path from matching (1.1)", "[routes]") {
  const Shared world;
  CHECK(world->get("/getchatts/?a=b").status() == 200);
  CHECK(world->get("/getchatts?a=b").status() == 200);
  CHECK(world->get("/?a=b").status() == 200);
}

TEST_CASE("a known path with another method is 405 and says in Allow what it takes (1.2)", "[routes]") {
  const Shared world;
  for (const Route& route : kRoutes) {
    const std::string other = std::string(route.method) == "GET" ? "POST" : "GET";
    for (const std::string& method : {other, std::string("PUT"), std::string("DELETE"), std::string("PATCH")}) {
      for (const std::string& path : {std::string(route.path), without_slash(route.path)}) {
        const Response response = world->send({method, path, method == "GET" ? "" : "{}", {}});
        INFO(method << " " << path);
        check_error(response, 405);
        CHECK(response.head.header("Allow").find(route.method) != std::string::npos);
        CHECK(response.head.header("Allow").find(method) == std::string::npos);
      }
    }
  }
  const Response root = world->post("/", "{}");
  check_error(root, 405);
  CHECK(root.head.header("Allow").find("GET") != std::string::npos);
}

TEST_CASE("HEAD works where GET does and is 405 elsewhere (1.2)", "[routes]") {
  const Shared world;
  for (const char* path : {"/", "/getchatts/", "/getchatts"}) {
    const Response response = world->send({"HEAD", path, "", {}});
    INFO(path << " -> " << response.text());
    CHECK(response.status() == 200);
    CHECK(response.body.empty());
    CHECK_FALSE(response.head.header("X-Request-Id").empty());
    CHECK(response.head.header("Accept-Ranges").empty());  // a Range would be ignored
  }
  const Response refused = world->send({"HEAD", "/llmchat/", "", {}});
  CHECK(refused.status() == 405);
  CHECK(refused.head.header("Allow").find("POST") != std::string::npos);
  CHECK(world->send({"HEAD", "/nothing", "", {}}).status() == 404);
}

TEST_CASE("the answer to HEAD has no body, so that the next answer on the connection is understood (1.2)", "[routes]") {
  const Shared world;
  Connection connection(world->endpoint);
  for (const char* path : {"/", "/llmchat/", "/getchatts/"}) {
    connection.send(bytes_of({"HEAD", path, "", {}}));
    const Response head = connection.read_response(kPatienceMs, true);
    if (lower_case(head.head.header("Connection")) == "close") {
      connection = Connection(world->endpoint);
      continue;
    }
    connection.send(bytes_of({"GET", "/", "", {}}));
    CHECK(connection.read_response().body == "\"EECS Reactive chatterd\"");
  }
}

TEST_CASE("OPTIONS is 204 with Allow, also without the slash (1.2)", "[routes]") {
  const Shared world;
  const auto check = [&](const std::string& path, const std::string& method) {
    const Response response = world->send({"OPTIONS", path, "", {}});
    INFO(path << " -> " << response.text());
    CHECK(response.status() == 204);
    CHECK(response.head.header("Allow").find(method) != std::string::npos);
    CHECK_FALSE(response.head.header("X-Request-Id").empty());
    CHECK(response.body.empty());
    CHECK(response.head.count("Content-Length") == 0);  // RFC 9110, 8.6
  };
  check("/", "GET");
  for (const Route& route : kRoutes) {
    check(route.path, route.method);
    check(without_slash(route.path), route.method);
  }
}

TEST_CASE("an unknown path is 404 with any method (1.2)", "[routes]") {
  const Shared world;
  for (const char* method : {"GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}) {
    INFO(method);
    check_error(world->send({method, "/nothing/here", "", {}}), 404);
  }
}

TEST_CASE("every response has an X-Request-Id of its own that stands in its log line (1.6)", "[routes]") {
  const Shared world;
  const size_t log_start = world->chatterd->err().size();
  std::set<std::string> ids;
  const auto check = [&](const Request& request, int status) {
    const Response response = world->send(request);
    const std::string id = response.head.header("X-Request-Id");
    INFO(request.method << " " << request.path << " -> " << response.text());
    CHECK(response.status() == status);
    CHECK(response.head.count("X-Request-Id") == 1);
    CHECK(ids.insert(id).second);
    const std::string line = world->chatterd->wait_for_log({"event=request", "id=" + id}, log_start);
    INFO("log line: " << line);
    CHECK(line.find("status=" + std::to_string(status)) != std::string::npos);
    CHECK(line.find("method=" + request.method) != std::string::npos);
    CHECK(line.find("path=" + request.path) != std::string::npos);
    CHECK(line.find("client=127.0.0.1") != std::string::npos);
    CHECK(line.find("ms=") != std::string::npos);
  };
  check({"GET", "/", "", {}}, 200);
  check({"GET", "/getchatts/", "", {}}, 200);
  check({"GET", "/nothing", "", {}}, 404);
  check({"PUT", "/llmchat/", "{}", {}}, 405);
  check({"OPTIONS", "/llmchat/", "", {}}, 204);
  check({"POST", "/llmchat/", "{", {}}, 422);
  check({"POST", "/llmchat/", "{}", {{"Content-Encoding", "gzip"}}}, 415);
  check({"POST", "/llmchat/", chat_body(fresh_app(), "id of a stream"), {}}, 200);
  check({"POST", "/llmprompt/", R"({"model":"m","prompt":"x"})", {}}, 200);
}

TEST_CASE("the log line of a stream has its lines and the time to the first token, and no text (1.6)", "[routes]") {
  const Shared world;
  const size_t log_start = world->chatterd->err().size();
  Stream stream(world->endpoint, chat_body(fresh_app(), "a secret prompt"));
  stream.rest();
  const std::string id = stream.head.header("X-Request-Id");
  const std::string line = world->chatterd->wait_for_log({"id=" + id, "event=request"}, log_start);
  INFO("log line: " << line);
  CHECK(line.find("lines=3") != std::string::npos);
  CHECK(line.find("first_token_ms=") != std::string::npos);
  CHECK(world->chatterd->log_from(log_start).find("secret prompt") == std::string::npos);
}

TEST_CASE("a request cannot write lines of its own into the log (1.6)", "[routes]") {
  const Shared world;
  const size_t log_start = world->chatterd->err().size();
  const Response response = world->get("/x%0d%0aevent=forged%20id=1");
  check_error(response, 404);
  REQUIRE_FALSE(world->chatterd->wait_for_log({response.head.header("X-Request-Id")}, log_start).empty());
  for (const std::string& line : lines_of(world->chatterd->log_from(log_start))) {
    INFO("log line: " << line);
    CHECK(line.rfind("event=forged", 0) != 0);
    CHECK(line.find(" event=forged id=1") == std::string::npos);
  }
}

TEST_CASE("no path of the machine's files leads anywhere (1.4)", "[routes]") {
  const Shared world;
  for (const char* path : {"/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/llmchat/../etc/passwd"}) {
    const Response response = world->get(path);
    INFO(path << " -> " << response.text());
    CHECK((response.status() == 404 || response.status() == 400));
  }
}

TEST_CASE("connections are kept and answer one request after another (1)", "[routes]") {
  const Shared world;
  Connection connection(world->endpoint);
  for (int i = 0; i < 5; ++i) {
    connection.send(bytes_of({"GET", "/", "", {}}));
    CHECK(connection.read_response().body == "\"EECS Reactive chatterd\"");
  }
  connection.send(bytes_of({"POST", "/postchatt/", R"({"name":"kept","message":"alive"})", {}}));
  CHECK(connection.read_response().body == "{}");
}

TEST_CASE("an answer says whether its connection is kept, and so it is (1)", "[routes]") {
  const Shared world;
  for (const Request& request : {Request{"GET", "/", "", {}}, Request{"POST", "/llmchat/", chat_body(fresh_app(), "x"), {}}, Request{"GET", "/nothing", "", {}}}) {
    INFO(request.path);
    Connection connection(world->endpoint);
    connection.send(bytes_of(request));
    const Response kept = connection.read_response();
    CHECK(kept.head.header("Keep-Alive").rfind("timeout=60,", 0) == 0);
    CHECK(kept.head.header("Connection").empty());
    Request last = request;
    last.headers.push_back({"Connection", "close"});
    connection.send(bytes_of(last));
    const Response closed = connection.read_response();
    CHECK(closed.status() == kept.status());
    CHECK(closed.head.header("Keep-Alive").empty());
    CHECK(closed.head.header("Connection") == "close");
    CHECK_FALSE(connection.read_raw());
  }
}

TEST_CASE("a request that comes byte by byte is understood (1)", "[routes]") {
  const Shared world;
  Connection connection(world->endpoint);
  connection.send_in_pieces(bytes_of({"POST", "/postchatt/", R"({"name":"slow","message":"byte by byte"})", {}}), 1);
  const Response response = connection.read_response();
  INFO(response.text());
  CHECK(response.body == "{}");
}
