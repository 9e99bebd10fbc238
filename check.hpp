// chatterd --check: what a student runs when it does not work.
#pragma once

#include "config.hpp"

/// Prints to standard output, of configuration, certificate, database, table and each Ollama, one line each:
/// usable, or what is wrong and the command that mends it. Changes nothing. True: all are usable.
bool run_check(const Config& config);
