// Server-Sent Events as chatterd writes them (contract 3.7 to 3.10; WHATWG HTML, "Server-sent
// events"). Pure functions; any thread.
#pragma once

#include <string>
#include <string_view>

/// A comment that keeps a silent stream open.
constexpr std::string_view kSsePing = ": ping\n\n";

/// Appends one event whose data is one line of JSON, byte for byte. A CR, which in JSON can only stand
/// between values but in SSE ends a line, becomes a space. `line` holds no \n.
void append_sse_data(std::string& out, std::string_view line);

/// Appends the event that tells of an error; the text is escaped as a JSON string, so that nothing in
/// it can begin a new field.
void append_sse_error(std::string& out, std::string_view text);
