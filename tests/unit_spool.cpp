#include "tests/catch.hpp"

#include <sys/resource.h>

#include <csignal>
#include <optional>
#include <string>
#include <vector>

#include "spool.hpp"
#include "tests/harness/certificate.hpp"

namespace {

// Files can't grow beyond so many bytes while it lives: a disk that is full.
class FullDisk {
 public:
  explicit FullDisk(rlim_t file_bytes_max) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{file_bytes_max, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  void (*handler_)(int);
  rlimit before_{};
};

Reply reply_with(const std::string& text) { return {{"app", "id of " + text}, text, std::nullopt}; }

std::vector<std::string> texts_found_in(const std::string& folder) {
  Spool spool;
  REQUIRE_FALSE(spool.open(folder, "database", "run").has_value());
  std::vector<std::string> texts;
  for (const Reply& reply : spool.orphans()) texts.push_back(reply.text);
  return texts;
}

}  // namespace

TEST_CASE("a reply that did not fit on the disk takes none of those behind it along (3.11)", "[spool]") {
  const harness::TempFolder folder;
  {
    Spool spool;
    REQUIRE_FALSE(spool.open(folder.file(""), "database", "run").has_value());
    REQUIRE(spool.keep(reply_with("first")));
    {
      const FullDisk full(200);
      REQUIRE_FALSE(spool.keep(reply_with(std::string(500, 'x'))));
    }
    REQUIRE(spool.keep(reply_with("third")));
  }
  CHECK(texts_found_in(folder.file("")) == std::vector<std::string>{"first", "third"});
}
