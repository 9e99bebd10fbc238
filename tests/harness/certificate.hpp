// Temporary folders and self-signed certificates for the tests.
#pragma once

#include <string>

namespace harness {

// A folder of its own under the system's temporary folder, removed with its owner.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
  // Writes the file and returns its path.
  [[nodiscard]] std::string write(const std::string& name, const std::string& content) const;

 private:
  std::string path_;
};

struct Certificate {
  std::string cert_path;
  std::string key_path;
};

// For localhost, 127.0.0.1 and ::1, valid from yesterday on for this many days (negative: already over).
Certificate make_certificate(const TempFolder& folder, const std::string& name, int valid_days = 30, long serial = 1);

// One for the whole run, made on first use.
const Certificate& test_certificate();

}  // namespace harness
