// The fuzz targets once more, with every file of their corpora: what fuzzing has found stays found.
#include "tests/catch.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "tests/fuzz/fuzz.hpp"

namespace {

// The tests run from the checkout's top.
std::vector<std::filesystem::path> corpus_of(const std::string& target) {
  const std::filesystem::path folder = "tests/fuzz/corpus/" + target;
  std::vector<std::filesystem::path> files;
  if (!std::filesystem::is_directory(folder)) return files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::uint8_t> read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void run_corpus(const std::string& target, void (*run)(fuzz::Bytes)) {
  const auto files = corpus_of(target);
  CAPTURE(target);
  REQUIRE_FALSE(files.empty());
  for (const auto& path : files) {
    INFO(path.string());
    const auto bytes = read_bytes(path);
    CHECK_NOTHROW(run(bytes));
  }
  CHECK_NOTHROW(run({}));
}

}  // namespace

TEST_CASE("bodies of the fuzz corpus are taken or refused as nlohmann's parser and the contract say (3.1, 3.4)", "[fuzz]") {
  run_corpus("request", fuzz::request);
}

TEST_CASE("streams of the fuzz corpus make the same lines however they are cut (3.7)", "[fuzz]") { run_corpus("ndjson", fuzz::ndjson); }

TEST_CASE("events made of the fuzz corpus are what an independent parser expects (3.7 to 3.11)", "[fuzz]") { run_corpus("sse", fuzz::sse); }

TEST_CASE("options of the fuzz corpus are refused or within their bounds (6)", "[fuzz]") { run_corpus("options", fuzz::options); }

TEST_CASE("messages of the fuzz corpus are read the same however they are cut (1.3, 1.5)", "[fuzz]") { run_corpus("http1", fuzz::http1); }
