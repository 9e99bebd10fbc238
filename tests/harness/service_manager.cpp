#include "tests/harness/service_manager.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>
#include <stdexcept>

namespace harness {

ServiceManager::ServiceManager(bool abstract) : socket_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
  const std::string path = folder_.file("notify");
  address_ = abstract ? "@" + path : path;
  sockaddr_un at{};
  at.sun_family = AF_UNIX;
  address_.copy(at.sun_path, sizeof at.sun_path - 1);
  if (abstract) at.sun_path[0] = '\0';
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size());
  if (::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&at), length) != 0) throw std::runtime_error("cannot bind " + address_);
  // chatterd may have become another user.
  ::chmod(folder_.file("").c_str(), 0755);
  if (!abstract) ::chmod(path.c_str(), 0777);
}

Environment ServiceManager::environment(int watchdog_ms) const {
  Environment all{{"NOTIFY_SOCKET", address_}};
  if (watchdog_ms > 0) all.emplace_back("WATCHDOG_USEC", std::to_string(watchdog_ms * 1000));
  return all;
}

const std::vector<std::string>& ServiceManager::messages() {
  char message[4096];
  for (ssize_t got = 0; (got = ::recv(socket_.get(), message, sizeof message, 0)) > 0;) messages_.emplace_back(message, static_cast<size_t>(got));
  return messages_;
}

std::string ServiceManager::wait_for(std::string_view begin, size_t from, int patience_ms) {
  std::string found;
  eventually(
      [&] {
        const auto& all = messages();
        for (size_t i = from; i < all.size() && found.empty(); ++i) {
          if (std::string_view(all[i]).substr(0, begin.size()) == begin) found = all[i];
        }
        return !found.empty();
      },
      patience_ms);
  return found;
}

size_t ServiceManager::count(std::string_view text) {
  const auto& all = messages();
  return static_cast<size_t>(std::count(all.begin(), all.end(), text));
}

}  // namespace harness
