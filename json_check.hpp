// Whether bytes are JSON, asked of each line that is relayed and of each request's body: nothing is built, copied
// or allocated, and plain text is passed over eight bytes at a time. That is ten times as fast as nlohmann's parser,
// which is the measure of what is right (tests/fuzz/ndjson.cpp and request.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

/// Whether `text` is one JSON value (RFC 8259) in valid UTF-8, with nothing but white space around it and perhaps
/// a BOM before it. Not JSON, beside bad syntax: a lone surrogate in an escape, a number outside of a double's range,
/// and nesting deeper than `depth_max`. Pure; any thread.
bool is_json(std::string_view text, size_t depth_max = SIZE_MAX);
