// A client's connection: when the parts of a TLS handshake are sent, and whom they wake.
#include "tests/catch.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "connection.hpp"
#include "tests/harness/certificate.hpp"

namespace {

// A connected pair of TCP sockets: the server's end, not blocking, and the client's.
std::pair<UniqueFd, UniqueFd> tcp_pair() {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  REQUIRE(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
  UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0);
  UniqueFd server(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  REQUIRE(server);
  return {std::move(server), std::move(client)};
}

// Waits until so many bytes have come in, also where those make the socket readable for nobody.
void wait_for(int fd, size_t bytes) {
  std::string buffer(bytes, '\0');
  for (const Deadline deadline = Deadline::after(std::chrono::seconds(15)); !deadline.passed();) {
    if (::recv(fd, buffer.data(), bytes, MSG_PEEK | MSG_DONTWAIT) == static_cast<ssize_t>(bytes)) return;
    ::poll(nullptr, 0, 1);
  }
  FAIL("the bytes do not come");
}

bool is_corked(int fd) {
  int value = -1;
  socklen_t length = sizeof value;
  REQUIRE(::getsockopt(fd, IPPROTO_TCP, TCP_CORK, &value, &length) == 0);
  return value == 1;
}

bool is_readable(int fd) {
  pollfd watched{fd, POLLIN, 0};
  return ::poll(&watched, 1, 0) == 1;
}

// The server's end of a connection, and a client whose messages go through memory.
class Pair {
 public:
  Pair() : context_(SSL_CTX_new(TLS_client_method())), client_(SSL_new(context_.get())) {
    const auto& files = harness::test_certificate();
    auto made = make_server_context(files.cert_path, files.key_path);
    REQUIRE(made.ok());
    auto [server_end, client_end] = tcp_pair();
    socket_ = std::move(client_end);
    server = std::make_unique<Connection>(std::move(server_end), Ssl(SSL_new(made.value().get())), "client", std::make_shared<const Connection::Limits>());
    BIO* const received = BIO_new(BIO_s_mem());
    BIO_set_mem_eof_return(received, -1);  // nothing yet, rather than the end
    SSL_set_bio(client_.get(), received, BIO_new(BIO_s_mem()));
    SSL_set_connect_state(client_.get());
  }

  // What the client has written.
  std::string take() {
    char* bytes = nullptr;
    const long size = BIO_get_mem_data(SSL_get_wbio(client_.get()), &bytes);
    std::string taken(bytes, static_cast<size_t>(size));
    static_cast<void>(BIO_reset(SSL_get_wbio(client_.get())));
    return taken;
  }
  // Sends the server `bytes`, and waits until they are there behind `already` others.
  void send(std::string_view bytes, size_t already = 0) {
    REQUIRE(::send(socket_.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    wait_for(server->fd(), already + bytes.size());
  }
  // Waits until the server has sent something, and gives it to the client.
  void receive() {
    wait_for(socket_.get(), 1);
    std::array<char, 16 * 1024> buffer;
    const ssize_t size = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    REQUIRE(size > 0);
    BIO_write(SSL_get_rbio(client_.get()), buffer.data(), static_cast<int>(size));
  }
  std::string hello() {
    CHECK(SSL_do_handshake(client_.get()) != 1);
    return take();
  }
  // Shakes hands until only the client's last word is missing, and returns that.
  std::string last_word() {
    send(hello());
    CHECK(server->handshake() == Connection::Io::wants_read);
    receive();
    REQUIRE(SSL_do_handshake(client_.get()) == 1);
    return take();
  }
  std::string encrypted(std::string_view bytes) {
    REQUIRE(SSL_write(client_.get(), bytes.data(), static_cast<int>(bytes.size())) == static_cast<int>(bytes.size()));
    return take();
  }
  // Has the client read what the server has sent: a ticket shows in nothing else.
  bool has_ticket() {
    receive();
    std::array<char, 64> nothing;
    CHECK(SSL_read(client_.get(), nothing.data(), nothing.size()) <= 0);
    const std::unique_ptr<SSL_SESSION, void (*)(SSL_SESSION*)> session(SSL_get1_session(client_.get()), SSL_SESSION_free);
    return SSL_SESSION_is_resumable(session.get()) == 1;
  }

  std::unique_ptr<Connection> server;

 private:
  UniqueFd socket_;
  std::unique_ptr<SSL_CTX, SslContextDeleter> context_;
  Ssl client_;
};

}  // namespace

TEST_CASE("a hello that comes in pieces is waited for, and answered when it is whole", "[connection]") {
  using Io = Connection::Io;
  Pair pair;
  const std::string hello = pair.hello();
  CHECK(pair.server->handshake() == Io::wants_read);  // nothing has come yet
  CHECK_FALSE(pair.server->dozes());
  CHECK_FALSE(is_corked(pair.server->fd()));  // or its answer would come late
  const size_t begin = 20;
  pair.send(hello.substr(0, begin));
  CHECK(is_readable(pair.server->fd()));
  CHECK(pair.server->handshake() == Io::wants_read);
  CHECK_FALSE(pair.server->dozes());
  CHECK_FALSE(is_corked(pair.server->fd()));  // or its answer would come late
  pair.send(hello.substr(begin));
  CHECK(pair.server->handshake() == Io::wants_read);
  CHECK(is_corked(pair.server->fd()));  // what ends the handshake waits for more
  pair.receive();                       // the answer to the hello is on its way nevertheless
}

TEST_CASE("what ends a handshake wakes nobody before the request behind it, and both are read at once", "[connection]") {
  using Io = Connection::Io;
  Pair pair;
  const std::string end = pair.last_word();
  pair.send(end);
  CHECK(pair.server->dozes());
  CHECK_FALSE(is_readable(pair.server->fd()));
  // The shortest record there is.
  pair.send(pair.encrypted("G"), end.size());
  CHECK(is_readable(pair.server->fd()));
  CHECK(pair.server->handshake() == Io::done);
  std::array<char, 64> buffer;
  std::string_view bytes;
  CHECK(pair.server->read(buffer, bytes) == Io::done);
  CHECK(bytes == "G");
  // And from now on anything wakes.
  CHECK_FALSE(is_readable(pair.server->fd()));
  pair.send(pair.encrypted("E"));
  CHECK(is_readable(pair.server->fd()));
}

TEST_CASE("a client that asks nothing gets its session ticket when the connection is roused", "[connection]") {
  using Io = Connection::Io;
  Pair pair;
  pair.send(pair.last_word());
  CHECK_FALSE(is_readable(pair.server->fd()));
  pair.server->rouse();
  CHECK(is_readable(pair.server->fd()));
  CHECK(pair.server->handshake() == Io::done);
  std::array<char, 64> buffer;
  std::string_view bytes;
  CHECK(pair.server->read(buffer, bytes) == Io::wants_read);
  CHECK(pair.has_ticket());
}
