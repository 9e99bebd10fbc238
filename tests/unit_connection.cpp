// A client's connection: what of the handshake is sent at once.
#include "tests/catch.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <memory>
#include <string>
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

bool is_corked(int fd) {
  int value = -1;
  socklen_t length = sizeof value;
  REQUIRE(::getsockopt(fd, IPPROTO_TCP, TCP_CORK, &value, &length) == 0);
  return value == 1;
}

// Waits until all of `bytes` has come in, and looks at the first of them only.
void wait_for(int fd, size_t bytes) {
  std::string buffer(bytes, '\0');
  pollfd watched{fd, POLLIN, 0};
  for (const Deadline deadline = Deadline::after(std::chrono::seconds(15)); !deadline.passed();) {
    if (::poll(&watched, 1, 100) > 0 && ::recv(fd, buffer.data(), bytes, MSG_PEEK | MSG_DONTWAIT) == static_cast<ssize_t>(bytes)) return;
  }
  FAIL("the bytes do not come");
}

// A client's first message.
std::string client_hello() {
  const std::unique_ptr<SSL_CTX, SslContextDeleter> context(SSL_CTX_new(TLS_client_method()));
  const Ssl ssl(SSL_new(context.get()));
  BIO* sent = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl.get(), BIO_new(BIO_s_mem()), sent);
  SSL_set_connect_state(ssl.get());
  CHECK(SSL_do_handshake(ssl.get()) != 1);
  char* bytes = nullptr;
  const long size = BIO_get_mem_data(sent, &bytes);
  return {bytes, static_cast<size_t>(size)};
}

}  // namespace

TEST_CASE("the answer to a hello that comes in pieces is sent at once; what ends the handshake waits for more", "[connection]") {
  using Io = Connection::Io;
  auto [server, client] = tcp_pair();
  const auto& files = harness::test_certificate();
  auto context = make_server_context(files.cert_path, files.key_path);
  REQUIRE(context.ok());
  const auto limits = std::make_shared<const Connection::Limits>();
  Connection connection(std::move(server), Ssl(SSL_new(context.value().get())), "client", limits);

  const std::string hello = client_hello();
  CHECK(connection.handshake() == Io::wants_read);  // nothing has come yet
  CHECK_FALSE(is_corked(connection.fd()));
  const size_t half = hello.size() / 2;
  REQUIRE(::send(client.get(), hello.data(), half, 0) == static_cast<ssize_t>(half));
  wait_for(connection.fd(), half);
  CHECK(connection.handshake() == Io::wants_read);
  CHECK_FALSE(is_corked(connection.fd()));
  REQUIRE(::send(client.get(), hello.data() + half, hello.size() - half, 0) == static_cast<ssize_t>(hello.size() - half));
  wait_for(connection.fd(), hello.size() - half);
  CHECK(connection.handshake() == Io::wants_read);
  CHECK(is_corked(connection.fd()));
  wait_for(client.get(), 100);  // the server's hello is on its way nevertheless
}
