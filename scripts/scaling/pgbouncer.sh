#!/usr/bin/env bash
# PgBouncer between chatterd and PostgreSQL; docs/scaling.md explains, --help says what is shown.
set -euo pipefail
# shellcheck source=scripts/scaling/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
read_arguments "$@" <<'END'
Two chatterd and one PgBouncer: with pool_mode = session all works; with pool_mode = transaction chatterd says in
its log what is wrong, and loses and mixes up nothing meanwhile. From PgBouncer 1.21 on, which can carry prepared
statements over, transaction mode works too.
END

# start_bouncer [SED-EXPRESSION]: the block of docs/scaling.md with private ports, edited.
start_bouncer() {
  local folder=$work/pgbouncer
  mkdir -p "$folder"
  printf '"chatter" "%s"\n' "$db_password" >"$folder/userlist.txt"
  document_block ini | sed -e "s|port=5432|port=$db_port|; s|6432|$port|; s|/etc/pgbouncer|$folder|" -e "${1:-}" >"$folder/pgbouncer.ini"
  say 'unix_socket_dir =' >>"$folder/pgbouncer.ini"
  # It refuses to run as root, like PostgreSQL.
  ((EUID)) || chown -R postgres:postgres "$folder"
  chmod 700 "$folder"
  start bouncer INT "${db_user[@]}" "$(PATH=$PATH:/usr/sbin command -v pgbouncer)" "$folder/pgbouncer.ini"
  eventually 10 is_open "$port" || die "PgBouncer did not start: $(<"$work/bouncer.log")"
}

start_both() {
  local name
  for name in one two; do
    start_chatterd "$name" "${ports[$name]}" "host=127.0.0.1 port=$port user=chatter dbname=chatterdb password=$db_password" \
      "http://127.0.0.1:$ollama_port" --cert "$work/chatterd.crt" --key "$work/chatterd.key"
  done
}
stop_both() {
  stop one
  stop two
  stop bouncer
}

sessions_are_few() {
  local count
  count=$(sql "select count(*) from pg_stat_activity where usename = 'chatter'")
  say "  $count sessions in PostgreSQL"
  ((count <= 20))
}
says_what_is_wrong() { eventually 20 grep -qs 'event=database_pooler' "$work/one.log" "$work/two.log"; }
says_nothing() { ! grep -qsE 'level=(warning|error)' "$work/one.log" "$work/two.log"; }

need_idle pgbouncer
begin
begin_database
declare -A ports
for name in one two; do free_port && ports[$name]=$REPLY; done
urls="https://localhost:${ports[one]} https://localhost:${ports[two]}"
free_port && port=$REPLY
free_port && ollama_port=$REPLY
start_ollama ollama "$ollama_port" --token-ms 5
version=$(PATH=$PATH:/usr/sbin pgbouncer --version | sed -n 's/^PgBouncer \([0-9.]*\).*/\1/p')
carries_statements=''
[[ $(printf '%s\n' 1.21 "$version" | sort -V | head -n 1) != 1.21 ]] || carries_statements=yes

part "PgBouncer $version, pool_mode = session:"
start_bouncer
start_both
holds 'all turns are served' under_load "$urls" 'session' sessions_are_few
holds 'the log has nothing to complain of' says_nothing
holds 'the database agrees with every turn' is_clean
stop_both
part 'pool_mode = transaction:'
start_bouncer "s/= session/= transaction/; ${carries_statements:+\$a max_prepared_statements = 0}"
start_both
holds 'chatterd says what is wrong' under_load "$urls" 'transaction' says_what_is_wrong
say "  $(grep -hs 'event=database_pooler' "$work/one.log" "$work/two.log" | head -n 1 | sed 's/^[^ ]* //')"
holds 'nothing acknowledged was lost, nothing is mixed up' is_clean
stop_both
if [[ -n $carries_statements ]]; then
  part 'pool_mode = transaction, max_prepared_statements = 200:'
  start_bouncer "s/= session/= transaction/; \$a max_prepared_statements = 200"
  start_both
  holds 'all turns are served' under_load "$urls" 'transaction' sessions_are_few
  holds 'the log has nothing to complain of' says_nothing
  holds 'the database agrees with every turn' is_clean
fi
say
say 'All of it held.'
