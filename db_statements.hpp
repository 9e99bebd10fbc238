// The statements that every connection of the pool prepares. Private to the db modules.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "db_connection.hpp"

namespace db_internal {

// Parameters in the order of the list. A TURN is appid, holder (a UUID); a LEASE an interval.
enum StatementIndex {
  kTakeTurn,        // TURN, LEASE: fails as DbFault::busy while another holds it or is next
  kTakeAndInsert,   // TURN, LEASE, name, message, id: the same and kInsert, in one; returns its place
  kInsert,          // appid, name, message, id; returns its place in the order
  kInsertMore,      // the same, and returns nothing
  kHistory,         // appid, ids that are left out
  kTakeBack,        // appid, ids
  kDelete,          // appid
  kInsertReply,     // TURN, which ends, text, place; a row if it was stored. The turn's holder is the row's id
  kFindReply,       // TURN, place; a row if nothing is left to do
  kAppendReply,     // TURN, which ends, text
  kEndTurn,         // TURN
  kEndTurnsOf,      // what the holders begin with
  kRenewTurn,       // TURN, LEASE; a row if it was
  kComeNext,        // TURN: the first right to the turn after this one
  kTurnIsFree,      // TURN; a row if kTakeTurn may succeed
  kGiveUp,          // TURN: its first right is over
  kForgetTurns,     //
  kInsertPublic,    // name, message, id
  kSelectPublic,    // time, seq, count
  kSelectLarge,     // seq
  kStatements
};

const Statement* statement(StatementIndex index);
std::span<const Statement> prepared_statements();

/// The failure in `results`, if they are one.
template <class Results>
std::optional<DbFailure> failure_of(const Results& results) {
  if (results.ok()) return std::nullopt;
  return results.error();
}

}  // namespace db_internal
