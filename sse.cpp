#include "sse.hpp"

#include <algorithm>

#include "text.hpp"

void append_sse_data(std::string& out, std::string_view line) {
  out += "data: ";
  const size_t from = out.size();
  out += line;
  if (line.find('\r') != std::string_view::npos) std::replace(out.begin() + static_cast<std::ptrdiff_t>(from), out.end(), '\r', ' ');
  out += "\n\n";
}

void append_sse_error(std::string& out, std::string_view text) {
  out += "event: error\ndata: { \"error\": ";
  append_json_string(out, text);
  out += " }\n\n";
}
