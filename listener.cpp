#include "listener.hpp"

#include <netdb.h>
#include <netinet/in.h>

#include <array>
#include <cerrno>
#include <memory>

Result<UniqueFd, ListenFailure> listen_on(int family, const std::string& host, const std::string& port, int backlog) {
  addrinfo hints{};
  hints.ai_family = family;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return ListenFailure{true, 0, ::gai_strerror(error)};
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> guard(found, ::freeaddrinfo);
  UniqueFd socket(::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  const int off = 0;
  // Not SO_REUSEPORT, which is httplib's default: with it a second chatterd would take half of the clients.
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (found->ai_family == AF_INET6) ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  if (!socket || ::bind(socket.get(), found->ai_addr, found->ai_addrlen) != 0 || ::listen(socket.get(), backlog) != 0) {
    const int error = errno;
    return ListenFailure{error == EADDRNOTAVAIL, error, errno_text(error)};
  }
  return socket;
}

std::string text_of(const sockaddr_storage& address) {
  std::array<char, NI_MAXHOST> host{};
  const socklen_t length = address.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  if (::getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host.data(), host.size(), nullptr, 0, NI_NUMERICHOST) != 0) return "?";
  const std::string text(host.data());
  return text.starts_with("::ffff:") ? text.substr(7) : text;
}

std::string local_address(const UniqueFd& socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length);
  const bool v6 = address.ss_family == AF_INET6;
  const in_port_t port = v6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port : reinterpret_cast<sockaddr_in&>(address).sin_port;
  const std::string host = text_of(address);
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(ntohs(port));
}
