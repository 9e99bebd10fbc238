#!/usr/bin/env bash
# Several Ollamas behind one chatterd; docs/scaling.md explains, --help says what is shown.
set -euo pipefail
# shellcheck source=scripts/scaling/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
read_arguments "$@" <<'END'
One chatterd with three stand-ins for Ollama: turns go to the least busy, one that is killed is passed over so
that no client notices whose answer had not begun, and once it is back it is used again.
END

generations_of() { grep -c '^POST /api/chat' "$work/$1.log" || true; }

# turns_at_once NUMBER: each in a conversation of its own. Succeeds if all were whole.
crowds=0
turns_at_once() {
  local i pids=() failed=0
  crowds=$((crowds + 1))
  for ((i = 1; i <= $1; i++)); do
    turn "$url" "crowd-$crowds-$i" "crowd-$crowds-$i" & pids+=($!)
  done
  for i in "${pids[@]}"; do wait "$i" || failed=$((failed + 1)); done
  say "  generations so far: $(generations_of first), $(generations_of second), $(generations_of third)"
  ((failed == 0))
}

spreads() {
  turns_at_once 12 && (($(generations_of first) == 4 && $(generations_of second) == 4 && $(generations_of third) == 4))
}

# One after the other, all at the first: its model is loaded and knows the conversation.
stays() {
  local i before
  before=$(generations_of first)
  for i in 1 2 3; do turn "$url" quiet "quiet#$i" || return 1; done
  (($(generations_of first) == before + 3))
}

# The turns whose answer had begun are told so, within their stream; they are as many as conversations at most.
few_others() { (($(wc -l <"$work/turns") - $(count_turns 200 whole) <= 8)) && [[ $(statuses) == '200 x '* && $(statuses) != *,* ]]; }

is_used_again() {
  local before
  start_ollama first "${port[first]}" --token-ms 20
  before=$(generations_of first)
  now_ms
  local began=$REPLY
  eventually 60 more_generations "$before" || return 1
  now_ms
  say "  used again after $(((REPLY - began) / 1000)) s"
}
more_generations() {
  turn "$url" again "again#$RANDOM$RANDOM" || return 1
  (($(generations_of first) > $1))
}

begin
begin_database
declare -A port
for name in first second third chatterd; do free_port && port[$name]=$REPLY; done
url=https://localhost:${port[chatterd]}
urls=''
for name in first second third; do
  start_ollama "$name" "${port[$name]}" --token-ms 20
  urls+=${urls:+,}http://127.0.0.1:${port[$name]}
done
start_chatterd chatterd "${port[chatterd]}" "host=127.0.0.1 port=$db_port user=chatter dbname=chatterdb password=$db_password" "$urls" \
  --cert "$work/chatterd.crt" --key "$work/chatterd.key"

part 'Three Ollamas:'
holds '12 turns at once are 4 at each' spreads
holds 'turns one after the other stay at the first' stays
part 'The first killed while nobody uses it:'
crash first
holds '12 turns at once are all answered in full' turns_at_once 12
part 'Started again:'
holds 'it is used again' is_used_again
part 'The first killed (kill -9) under 8 conversations:'
holds 'turns go on' under_load "$url" 'killed' crash first
holds 'whose answer had not begun did not notice' few_others
holds 'the database agrees with every turn' is_clean
say
say 'All of it held.'
