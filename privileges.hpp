// Root is for binding a port and reading a key; nothing is served as root.
#pragma once

#include <optional>
#include <string>

/// Becomes `user` for good, with its own group alone, when this process is root; otherwise does
/// nothing. Empty: the user who called sudo, else nobody. Returns what is wrong, as a sentence. Call it
/// before any thread is started.
std::optional<std::string> drop_root(const std::string& user);
