#include "db_statements.hpp"

// A turn is taken by whoever finds its time over and nobody next; for all others the holder becomes NULL,
// which its constraint refuses, and with it the whole transaction. now() is the transaction's start: one that had
// to wait for the row comes too early rather than too late.
#define TAKE_TURN                                                                                                  \
  "INSERT INTO chatterd_turns AS turn (appid, holder, until) VALUES ($1, $2, now() + $3::interval)"                 \
  " ON CONFLICT (appid) DO UPDATE SET until = excluded.until, next = NULL, next_until = NULL,"                      \
  " holder = CASE WHEN turn.until <= now() AND (turn.next IS NULL OR turn.next = excluded.holder"                   \
  " OR turn.next_until <= now()) THEN excluded.holder END"
// The holder goes too, so that a renewal that was on its way finds nothing.
#define END_TURN                                                                                                   \
  "UPDATE chatterd_turns SET holder = '00000000-0000-0000-0000-000000000000', until = now()"                        \
  " WHERE appid = $1 AND holder = $2"

namespace db_internal {
namespace {

const Statement kPrepared[kStatements] = {
    {"take_turn", TAKE_TURN},
    // The insert's place in the order is drawn only when the turn is taken.
    {"take_and_insert",
     "WITH taken AS (" TAKE_TURN " RETURNING appid) INSERT INTO chatts (name, message, id, appid)"
     " SELECT $4::text, $5::text, $6::uuid, appid FROM taken RETURNING seq"},
    {"insert", "INSERT INTO chatts (appid, name, message, id) VALUES ($1, $2, $3, $4) RETURNING seq"},
    {"insert_more", "INSERT INTO chatts (appid, name, message, id) VALUES ($1, $2, $3, $4)"},
    // Without those just inserted, by their ids and not by their place: other programs insert meanwhile.
    {"history", "SELECT name, message FROM chatts WHERE appid = $1 AND (id IS NULL OR id <> ALL ($2::uuid[])) ORDER BY seq"},
    {"take_back", "DELETE FROM chatts WHERE appid = $1 AND id = ANY ($2::uuid[])"},
    {"delete", "DELETE FROM chatts WHERE appid = $1"},
    // Without its prompt a reply is not wanted: the conversation was begun anew meanwhile.
    {"insert_reply",
     "WITH ended AS (" END_TURN ") INSERT INTO chatts (name, message, id, appid, seq)"
     " SELECT 'assistant', $3::text, $2::uuid, $1::varchar, $4::bigint"
     " WHERE EXISTS (SELECT FROM chatts WHERE appid = $1 AND seq = $4::bigint - 1) ON CONFLICT DO NOTHING RETURNING seq"},
    {"find_reply",
     "SELECT 1 WHERE EXISTS (SELECT FROM chatts WHERE appid = $1 AND seq = $3::bigint AND id = $2)"
     " OR NOT EXISTS (SELECT FROM chatts WHERE appid = $1 AND seq = $3::bigint - 1)"},
    {"append_reply",
     "WITH ended AS (" END_TURN ") INSERT INTO chatts (name, message, id, appid) SELECT 'assistant', $3::text, $2::uuid, $1::varchar"
     " WHERE NOT EXISTS (SELECT FROM chatts WHERE appid = $1 AND id = $2)"},
    {"end_turn", END_TURN},
    {"end_turns_of",
     "UPDATE chatterd_turns SET holder = '00000000-0000-0000-0000-000000000000', until = now()"
     " WHERE until > now() AND starts_with(holder::text, $1)"},
    // What others have locked is passed over: many rows at once, in any order, must not lead to a deadlock.
    {"renew_turn",
     "UPDATE chatterd_turns SET until = now() + $3::interval WHERE appid ="
     " (SELECT appid FROM chatterd_turns WHERE appid = $1 AND holder = $2 FOR UPDATE SKIP LOCKED) RETURNING 1"},
    // Written anew when half of its second is over, not at each look.
    {"come_next",
     "UPDATE chatterd_turns SET next = $2, next_until = now() + '1 s' WHERE appid = $1 AND until > now()"
     " AND (next IS NULL OR next_until <= now() OR next = $2 AND next_until <= now() + '0.5 s')"},
    {"turn_is_free",
     "SELECT 1 WHERE NOT EXISTS (SELECT FROM chatterd_turns WHERE appid = $1"
     " AND (until > now() OR next <> $2 AND next_until > now()))"},
    {"give_up", "UPDATE chatterd_turns SET next = NULL, next_until = NULL WHERE appid = $1 AND next = $2"},
    {"forget_turns",
     "DELETE FROM chatterd_turns WHERE appid IN"
     " (SELECT appid FROM chatterd_turns WHERE until < now() - interval '10 min' FOR UPDATE SKIP LOCKED)"},
    {"insert_public", "INSERT INTO chatts (name, message, id) VALUES ($1, $2, $3)"},
    {"select_public",
     // 2048 bytes: about where PostgreSQL stores a value apart from its row, so that a page reads rows only.
     "SELECT CASE WHEN octet_length(name) <= 2048 THEN name END, CASE WHEN octet_length(message) <= 2048 THEN message END,"
     " id, time, seq, nullif(octet_length(name) > 2048 OR octet_length(message) > 2048, false)"
     " FROM chatts WHERE appid IS NULL AND (coalesce(time, '-infinity'), seq) > ($1::timestamptz, $2::bigint)"
     " ORDER BY coalesce(time, '-infinity'), seq LIMIT $3::bigint"},
    {"select_large", "SELECT name, message FROM chatts WHERE appid IS NULL AND seq = $1"},
};

}  // namespace

const Statement* statement(StatementIndex index) { return &kPrepared[index]; }
std::span<const Statement> prepared_statements() { return kPrepared; }

}  // namespace db_internal
