// What the tests of long answers share. An answer here begins with lines that hurry, which the request's thread passes
// on by itself, and then some at the pace of reading (pump.hpp): from then on the stream is lent to the pump, and
// nothing may show it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tests/contract_fixture.hpp"

namespace contract {

// The number of lines that each answer begins with, and how many of these come at the pace of reading.
constexpr size_t kMany = 20;
constexpr size_t kSlow = 6;

// Those lines, every one sent once the test has read the one before: so chatterd has to wait for each. A
// handle, like Gate.
class ManyLines {
 public:
  static std::string token(size_t i);
  static std::string text();                // of all of them
  static std::vector<std::string> lines();

  // The lines, then what `rest` does.
  [[nodiscard]] Script then(const Script& rest) const;
  // Reads them all and asserts that each is as it was sent.
  void read(Stream& stream) const;
  // Opened one after the other, by read() or by the test.
  [[nodiscard]] const std::vector<Gate>& gates() const { return read_; }

 private:
  std::vector<Gate> read_ = std::vector<Gate>(kMany);
};

// What may come after the lines:
void silence(Conn& conn);
void end_well(Conn& conn);
// Lines of this token without end; or silence.
Script pour(std::string_view token, bool lines_come = true);

// The reply stored for `app`, of whose one prompt only part was answered, begins with the many lines and this.
void check_stored_so_far(World& world, const std::string& app, const std::string& more = "");

}  // namespace contract
