#include "db_servers.hpp"

#include <cstring>

namespace db_internal {
namespace {

struct OptionsDeleter {
  void operator()(PQconninfoOption* options) const { PQconninfoFree(options); }
};
using Options = std::unique_ptr<PQconninfoOption, OptionsDeleter>;

std::string value_in(const PQconninfoOption* option, const char* keyword) {
  for (; option != nullptr && option->keyword != nullptr; ++option) {
    if (std::strcmp(option->keyword, keyword) == 0 && option->val != nullptr) return option->val;
  }
  return "";
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts(1);
  for (const char c : list) {
    if (c == ',') parts.emplace_back();
    else parts.back() += c;
  }
  return parts;
}

// Gives each address its part of a list. False if the list has another length, or an empty part, by which
// libpq means something else each time: then the list is libpq's affair.
bool distribute(const std::string& list, std::vector<Address>& addresses, std::string Address::*part) {
  const std::vector<std::string> parts = split(list);
  if (list.empty() || (part == &Address::port && parts.size() == 1)) return true;  // the same for all
  if (parts.size() != addresses.size()) return false;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].empty()) return false;
    addresses[i].*part = parts[i];
  }
  return true;
}

std::vector<Address> addresses_in(const std::string& conninfo) {
  if (!conninfo_value(conninfo, "service").empty()) return {Address{conninfo, false, "", "", ""}};
  const std::string host = conninfo_value(conninfo, "host");
  const std::string hostaddr = conninfo_value(conninfo, "hostaddr");
  const size_t count = split(host.empty() ? hostaddr : host).size();
  std::vector<Address> addresses(count, Address{conninfo, count > 1, "", "", ""});
  if (count > 1 && distribute(host, addresses, &Address::host) && distribute(hostaddr, addresses, &Address::hostaddr) &&
      distribute(conninfo_value(conninfo, "port"), addresses, &Address::port)) {
    return addresses;
  }
  return {Address{conninfo, count > 1, "", "", ""}};
}

}  // namespace

std::string conninfo_value(const std::string& conninfo, const char* keyword) {
  const Options given(PQconninfoParse(conninfo.c_str(), nullptr));
  std::string value = value_in(given.get(), keyword);
  if (!value.empty()) return value;
  const Options defaults(PQconndefaults());
  return value_in(defaults.get(), keyword);
}

Servers::Servers(const std::string& conninfo) : addresses_(addresses_in(conninfo)) {}

Result<std::unique_ptr<Connection>, DbFailure> Servers::connect(std::span<const Statement> statements, milliseconds statement_timeout,
                                                                Deadline deadline) {
  const size_t count = addresses_.size();
  const size_t first = first_;
  DbFailure failure{DbFault::unavailable, false, ""};
  for (size_t tried = 0; tried < count; ++tried) {
    const size_t index = (first + tried) % count;
    const auto share = (deadline.at() - Clock::now()) / static_cast<Clock::rep>(count - tried);
    auto opened = Connection::open(addresses_[index], statements, statement_timeout, Deadline::earlier(deadline, Deadline::after(share)));
    if (opened.ok()) {
      first_ = index;
      return opened;
    }
    if (opened.error().fault != DbFault::unavailable) return opened;
    failure.detail += (tried == 0 ? "" : "; ") + opened.error().detail;
  }
  return failure;
}

}  // namespace db_internal
