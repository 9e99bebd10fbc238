// The configuration file: variables as systemd's EnvironmentFile= has them, so that one file serves both.
//
// Source: systemd.exec(5), "EnvironmentFile="; where that says "ignored", this is an error.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "result.hpp"

/// The variables of a file, as they stand in it.
struct EnvFile {
  struct Variable {
    std::string name, value;
    int line;  ///< where it begins, from 1
  };
  std::string path;
  std::vector<Variable> variables;

  /// The variable of this name; of several the last, nullptr for none.
  const Variable* find(std::string_view name) const;
};

/// Reads lines NAME=VALUE; those that are empty or begin with # or ; are passed over. Around a value white
/// space is dropped. In '...' all is literal; in "..." a backslash escapes " \ ` $ only; elsewhere the next
/// byte, whatever it is; before a line's end it joins the next line. Quoted parts may go over several lines,
/// and stand one after the other. There is no `export` and no $NAME. Pure. The error is one sentence without the
/// file's name, and without a value, which may be a password.
Result<EnvFile, std::string> parse_env_file(std::string_view text);

/// The same for a file, a regular one of 64 KiB at most. The error is one sentence that names it.
Result<EnvFile, std::string> read_env_file(const std::string& path);
