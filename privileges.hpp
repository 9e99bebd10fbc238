// Root is for binding a port and reading a key; nothing is served as root.
#pragma once

#include <optional>
#include <string>

#include "result.hpp"

/// Becomes `user` for good, with its own group alone, when this process is root; otherwise does
/// nothing. Empty: the user who called sudo, else nobody. Call it before any
/// thread is started; after a problem nothing may be served.
std::optional<StartProblem> drop_root(const std::string& user);
