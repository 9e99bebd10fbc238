#include "env_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cerrno>

#include "net.hpp"

namespace {

// Some hundred times a file with every option; what is larger is another file.
constexpr size_t kEnvFileBytesMax = size_t{64} * 1024;

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r'; }

bool is_name(std::string_view text) {
  const auto fits = [](char c) { return c == '_' || std::isalnum(static_cast<unsigned char>(c)) != 0; };
  return !text.empty() && std::isdigit(static_cast<unsigned char>(text.front())) == 0 && std::all_of(text.begin(), text.end(), fits);
}

// Takes a file's text apart from its front to its end.
class Parser {
 public:
  explicit Parser(std::string_view text) : rest_(text) {}

  Result<EnvFile, std::string> run() {
    EnvFile file;
    while (skip_to_name()) {
      EnvFile::Variable variable{"", "", line_};
      const std::string_view name = rest_.substr(0, rest_.find_first_of("=\n"));
      if (name.size() == rest_.size() || rest_[name.size()] == '\n') return wrong("has no `=`", line_);
      rest_.remove_prefix(name.size() + 1);
      variable.name = name.substr(0, name.find_last_not_of(" \t\r") + 1);
      if (!is_name(variable.name)) return wrong("does not begin with the name of a variable", line_);
      if (!take_value(variable.value)) return wrong("has a quote that does not end", variable.line);
      file.variables.push_back(std::move(variable));
    }
    return file;
  }

 private:
  static std::string wrong(const std::string& what, int line) { return "line " + std::to_string(line) + " " + what; }

  char take() {
    const char c = rest_.front();
    rest_.remove_prefix(1);
    if (c == '\n') ++line_;
    return c;
  }

  // Over white space, empty lines and comments. False: nothing is left.
  bool skip_to_name() {
    while (!rest_.empty()) {
      if (rest_.front() == '#' || rest_.front() == ';') {
        rest_.remove_prefix(std::min(rest_.find('\n'), rest_.size()));
      } else if (is_space(rest_.front()) || rest_.front() == '\n') {
        take();
      } else {
        return true;
      }
    }
    return false;
  }

  // Up to and with the line's end. False: a quote is open.
  bool take_value(std::string& value) {
    bool plain = false;  // within a part without quotes, where a quote is a byte like others
    size_t keep = 0;     // white space behind this is the line's, not the value's
    while (!rest_.empty()) {
      const char c = take();
      if (c == '\n') break;
      if (!plain && (c == '\'' || c == '"')) {
        if (!(c == '"' ? take_double_quoted(value) : take_single_quoted(value))) return false;
        keep = value.size();
      } else if (c == '\\') {
        plain = true;
        if (rest_.empty()) break;
        if (const char escaped = take(); escaped != '\n') value += escaped;
        keep = value.size();
      } else if (plain || !is_space(c)) {
        plain = true;
        value += c;
        if (!is_space(c)) keep = value.size();
      }
    }
    value.resize(keep);
    return true;
  }

  bool take_single_quoted(std::string& value) {
    while (!rest_.empty()) {
      const char c = take();
      if (c == '\'') return true;
      value += c;
    }
    return false;
  }

  bool take_double_quoted(std::string& value) {
    while (!rest_.empty()) {
      const char c = take();
      if (c == '"') return true;
      if (c != '\\') {
        value += c;
        continue;
      }
      if (rest_.empty()) return false;
      const char escaped = take();
      if (std::string_view("\"\\`$").find(escaped) == std::string_view::npos && escaped != '\n') value += '\\';
      if (escaped != '\n') value += escaped;
    }
    return false;
  }

  std::string_view rest_;
  int line_ = 1;
};

}  // namespace

const EnvFile::Variable* EnvFile::find(std::string_view name) const {
  const auto found = std::find_if(variables.rbegin(), variables.rend(), [&](const Variable& variable) { return variable.name == name; });
  return found == variables.rend() ? nullptr : &*found;
}

Result<EnvFile, std::string> parse_env_file(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) return std::string("it is not a text file");
  return Parser(text).run();
}

Result<EnvFile, std::string> read_env_file(const std::string& path) {
  const auto wrong = [&](const std::string& reason) { return "--env-file: " + path + " can't be used: " + reason + "."; };
  // A FIFO would keep the process waiting for a writer.
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (!file || ::fstat(file.get(), &status) != 0) return wrong(errno_text(errno));
  if (!S_ISREG(status.st_mode)) return wrong("it is not a file");
  std::string text(kEnvFileBytesMax + 1, '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = ::read(file.get(), text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return wrong(errno_text(errno));
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > kEnvFileBytesMax) return wrong("it is larger than " + std::to_string(kEnvFileBytesMax) + " bytes");
  text.resize(size);
  auto parsed = parse_env_file(text);
  if (!parsed.ok()) return wrong(parsed.error());
  parsed.value().path = path;
  return parsed;
}
