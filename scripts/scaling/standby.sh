#!/usr/bin/env bash
# PostgreSQL with a hot standby; docs/scaling.md explains, --help says what is shown.
set -euo pipefail
# shellcheck source=scripts/scaling/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
read_arguments "$@" <<'END'
A primary and a synchronous hot standby: nothing is acknowledged that only one of them has; the primary is
killed under load, the standby promoted, and chatterd goes on with it by itself, without losing a turn that was
acknowledged.
END

standby_home=''
end_all() {
  stop_all
  [[ -z $standby_home ]] || rm -rf "$standby_home"
}

# make_synchronous: the settings of docs/scaling.md, as SQL.
make_synchronous() {
  local name value
  document_block conf | sed 's/ *#.*//' | while read -r name _ value; do sql "alter system set $name = $value"; done
  reload
}
make_asynchronous() {
  sql 'alter system reset synchronous_standby_names'
  reload
}
reload() { sql 'select pg_reload_conf()' >/dev/null; }

start_standby() {
  local log=$work/basebackup.log
  # PostgreSQL's own rules for who may copy it are not those for its databases.
  printf 'host replication postgres 127.0.0.1/32 scram-sha-256\n' >>"$db_home/data/pg_hba.conf"
  reload
  standby_home=$(mktemp -d "${db_home%/*}/chatterd-postgres.XXXXXX")
  ((EUID)) || chown postgres:postgres "$standby_home"
  quietly "$log" env PGPASSWORD="$db_password" PGAPPNAME=standby "${db_user[@]}" "$db_bin/pg_basebackup" --pgdata="$standby_home/data" --port="$db_port" \
    --checkpoint=fast --write-recovery-conf --dbname="application_name=standby"
  free_port && standby_port=$REPLY
  run_standby
}
run_standby() {
  start standby INT "${db_user[@]}" "$db_bin/postgres" -D "$standby_home/data" -c port="$standby_port" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories=
  eventually 30 is_up "$standby_port" || die 'the standby did not start'
}
is_up() { sql 'select 1' "$1" >/dev/null 2>&1; }
follows() { [[ $(sql "select sync_state from pg_stat_replication where state = 'streaming'") == "$1" ]]; }

# The time for a commit, in milliseconds: the mean of 200, one after the other.
commit_ms() {
  local began i
  now_ms && began=$REPLY
  for ((i = 0; i < 200; i++)); do say "insert into chatts (name, message, id) values ('a', 'b', gen_random_uuid());"; done |
    PGPORT=$db_port psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1
  now_ms
  awk -v ms="$((REPLY - began))" 'BEGIN { printf "%.2f", ms / 200 }'
}

# Without its standby the primary goes on reading, but nobody is told that a turn was stored.
acknowledges_nothing() {
  stop standby
  ! turn "$url" alone "alone#1" || return 1
  [[ $(tail -n 1 "$work/turns" | cut -f3) == 503 && $(curl -q --silent --cacert "$work/chatterd.crt" "$url/getchatts/") == '[['* ]]
}
goes_on_alone() {
  make_asynchronous
  eventually 20 turn "$url" alone "alone#$RANDOM"
}
follows_again() {
  run_standby
  make_synchronous
  eventually 20 follows sync
}

# fails_over: the primary dies at once, as by a loss of power, and the standby takes its place.
fails_over() {
  local began
  kill -s KILL "$(head -n 1 "$db_home/data/postmaster.pid")"
  now_ms && began=$REPLY
  eventually 20 hears 503 || return 1
  say '  the primary is dead, and new turns are answered by 503'
  sql 'select pg_promote()' "$standby_port" >/dev/null
  eventually 20 turn "$url" probe "probe#$RANDOM" || return 1
  now_ms && say "  served again $((REPLY - began)) ms after the primary died"
}
hears() { [[ $(curl -q --silent --cacert "$work/chatterd.crt" --output /dev/null --write-out '%{http_code}' "$url/getchatts/") == "$1" ]]; }

begin
trap end_all EXIT
begin_database
free_port && port=$REPLY
free_port && ollama_port=$REPLY
start_standby
start_ollama ollama "$ollama_port" --token-ms 20
start_chatterd chatterd "$port" "host=127.0.0.1,127.0.0.1 port=$db_port,$standby_port user=chatter dbname=chatterdb password=$db_password" \
  "http://127.0.0.1:$ollama_port" --cert "$work/chatterd.crt" --key "$work/chatterd.key"
url=https://localhost:$port

part 'A standby that follows:'
holds 'asynchronously, as it does without further settings' eventually 10 follows async
say "  a commit takes $(commit_ms) ms"
make_synchronous
holds 'synchronously' eventually 10 follows sync
say "  a commit takes $(commit_ms) ms"
part 'The standby stopped:'
holds 'nothing is acknowledged that the standby does not have; reading goes on' acknowledges_nothing
holds 'without synchronous_standby_names the primary goes on alone' goes_on_alone
holds 'the standby is back, and synchronous again' follows_again
part 'The primary killed under 8 conversations, and the standby promoted:'
holds 'chatterd goes on with the new primary' under_load "$url" 'fail-over' fails_over
holds 'nothing acknowledged was lost' is_clean "$standby_port"
say
say 'All of it held.'
