// How many loans of real time there are; that they are in real time shows in contract_access.cpp.
#include "tests/catch.hpp"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "lender.hpp"
#include "net.hpp"

namespace {

// The one that has just come back is free again once its thread has seen it.
Lender::Loan lend_soon(Lender& lender) {
  const Deadline deadline = Deadline::after(std::chrono::seconds(10));
  Lender::Loan loan = lender.lend();
  while (!loan && !deadline.passed()) {
    std::this_thread::yield();
    loan = lender.lend();
  }
  return loan;
}

}  // namespace

TEST_CASE("no more is lent at once than there is, and what has come back is lent again", "[lender]") {
  Lender lender(2);
  Lender::Loan first = lender.lend();
  const Lender::Loan second = lender.lend();
  CHECK(first != nullptr);
  CHECK(second != nullptr);
  CHECK(lender.lend() == nullptr);
  first.reset();
  CHECK(lend_soon(lender) != nullptr);
}

TEST_CASE("many threads borrow from one lender, and all is there again when they have ended", "[lender]") {
  Lender lender(2);
  std::atomic<int> loans = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int tries = 0; tries < 500; ++tries) {
        if (const auto loan = lender.lend()) ++loans;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(loans > 0);
  const Lender::Loan first = lend_soon(lender);
  const Lender::Loan second = lend_soon(lender);
  CHECK(first != nullptr);
  CHECK(second != nullptr);
}
