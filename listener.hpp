// Listening TCP sockets, and addresses as text.
#pragma once

#include <sys/socket.h>

#include <string>

#include "net.hpp"
#include "result.hpp"

struct ListenFailure {
  bool no_address;     ///< the host is neither an address of this machine nor a name for one
  int error;           ///< otherwise, the errno
  std::string reason;  ///< either in words
};

/// A non-blocking socket that listens on the first address of `host`, a name or a number, of `family` (AF_UNSPEC:
/// any); one of IPv6 takes IPv4 too. `port` 0: a free one. `backlog`: connections that may wait to be accepted.
Result<UniqueFd, ListenFailure> listen_on(int family, const std::string& host, const std::string& port, int backlog);

/// An address without its port; IPv4 within IPv6 as IPv4.
std::string text_of(const sockaddr_storage& address);
/// Where a socket listens, as in a URL: 127.0.0.1:443, [::]:443.
std::string local_address(const UniqueFd& socket);
