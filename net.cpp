#include "net.hpp"

#include <system_error>

std::string errno_text(int error_number) { return std::generic_category().message(error_number); }
