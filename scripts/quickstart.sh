#!/usr/bin/env bash
# From a bare machine to a streamed answer; see --help.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'END'
usage: scripts/quickstart.sh [--once]

Shows chatterd at work: installs what is missing (as root or with sudo), builds, starts chatterd on a free
port with a PostgreSQL of its own, sends two prompts and shows the replies and the rows in the database.
Then it serves until ^C; with --once it ends there. What it starts is gone when it ends, and no existing
cluster, service or port is touched. Files and logs are in quickstart.d.
  CHATTERD_DB      a connection string: this database instead of a PostgreSQL of its own
  CHATTERD_OLLAMA  where Ollama is, if not at http://localhost:11434
END
}

once=''
case ${1:-} in
  '') ;;
  --once) once=yes ;;
  --help | -h) usage && exit 0 ;;
  *) die "unknown argument $1 (--help explains)" ;;
esac

folder=$checkout/quickstart.d
conversation=quickstart-$(random_hex 3) # a new one each time, whatever the database holds

# ---- Beginning and end ----

chatterd_pid='' stand_in_pid=''
clean_up() {
  trap '' INT TERM HUP # once is enough
  # chatterd first: it stores what it has of a reply, and needs its database for that.
  [[ -z $chatterd_pid ]] || stop_process "$chatterd_pid"
  [[ -z $stand_in_pid ]] || stop_process "$stand_in_pid"
  private_db_stop
  rm -f "$folder/pgpass"
}

# Programs started here inherit the lock, so it is held until the last of them has ended: a second run after
# `kill -9` of the first waits for them.
take_lock() {
  if ! { mkdir -p "$folder" && : >>"$folder/lock"; } 2>/dev/null; then
    die "$folder can't be written by this user; if a run as root made it: sudo rm -r quickstart.d build"
  fi
  exec 9>>"$folder/lock"
  flock --wait 20 9 || die 'another quickstart.sh is at work in this checkout'
}

# One aligned line for each thing that is ready.
ready() { printf '%-12s %s\n' "$1" "$2"; }

# ---- What the show needs ----

install_and_build() {
  local database=(postgresql-server)
  if [[ -n ${CHATTERD_DB:-} ]]; then
    database=()
    command -v psql >/dev/null || database=(postgresql-client)
  fi
  need_packages "${build_packages[@]}" "${database[@]}"
  make --silent --question -C "$checkout" 2>/dev/null || say 'Building chatterd (a minute or two; log: quickstart.d/build.log)'
  quietly "$folder/build.log" make -C "$checkout" -j"$(nproc)"
  quietly "$folder/certificate.log" "$checkout/scripts/make-cert.sh" --force --out-dir "$folder" localhost 127.0.0.1
  ready Certificate 'quickstart.d/chatterd.crt, for localhost'
}

start_database() {
  if [[ -n ${CHATTERD_DB:-} ]]; then
    shown_db=$CHATTERD_DB state=$folder/state
    ready PostgreSQL 'the one that CHATTERD_DB names'
    return 0
  fi
  unset "${!PG@}" # libpq's settings belong to another server
  private_db_start "$folder"
  state=$folder/state-private
  rm -rf "$state" # what waits there belongs to a database that is gone
  # The role's own, not the superuser's, who can run programs: this one stands in files, which only this user can read.
  local password
  password=$(random_hex 16)
  rm -f "$folder/setup-db.log"
  (
    umask 077
    printf '127.0.0.1:%s:*:*:%s\n' "$db_port" "$password" >"$folder/pgpass"
    CHATTER_PASSWORD=$password PGHOST=127.0.0.1 PGPORT=$db_port PGUSER=postgres PGPASSWORD=$db_password \
      quietly "$folder/setup-db.log" "$checkout/scripts/setup-db.sh"
  )
  shown_db="host=127.0.0.1 port=$db_port user=chatter dbname=chatterdb"
  # With the password, since chatterd gives up root and can't read pgpass then; and by the environment,
  # which other users can't see.
  export CHATTERD_DB="$shown_db password=$password"
  ready PostgreSQL "a private one on port $db_port, gone when this ends"
}

ollama_answers() { [[ $(curl -q --silent --max-time 5 "$1/api/version") == *'"version"'* ]]; }

# The first model that can chat; a model for embeddings can't.
first_model() {
  curl -q --silent --max-time 5 "$1/api/tags" | grep -oE '"name": *"[^"]+"' | cut -d'"' -f4 | grep -v embed | head -n 1
}

find_ollama() {
  ollama=${CHATTERD_OLLAMA:-http://localhost:11434}
  ollama=${ollama%/} && ollama=${ollama%/api}
  if ! ollama_answers "$ollama"; then
    ready Ollama "none answers at $ollama, so a stand-in does: a small program that"
    ready '' "streams a canned answer by Ollama's API (the real one: https://ollama.com/download)"
  elif ! model=$(first_model "$ollama"); then
    ready Ollama "the one at $ollama has no model. \"ollama pull gemma3:270m\" gets a small one;"
    ready '' 'for now a stand-in answers: a small program that streams a canned text'
  else
    ready Ollama "the one at $ollama, with its model $model"
    return 0
  fi
  start_stand_in
}

start_stand_in() {
  model=stand-in
  quietly "$folder/build.log" make -C "$checkout" -j"$(nproc)" stand-in
  launch TERM "$folder/stand-in.log" "$checkout/build/release/ollama_stand_in" --port 0
  stand_in_pid=$launched
  ollama=$(address_in "$folder/stand-in.log" "$stand_in_pid") || broken 'the stand-in did not start' stand-in.log
}

start_chatterd() {
  launch TERM "$folder/chatterd.log" "$checkout/chatterd" --host 127.0.0.1 --port 0 \
    --cert "$folder/chatterd.crt" --key "$folder/chatterd.key" --state-dir "$state" --ollama "$ollama"
  chatterd_pid=$launched
  url=$(address_in "$folder/chatterd.log" "$chatterd_pid") || broken 'chatterd did not start' chatterd.log
  ready chatterd "$url, log: quickstart.d/chatterd.log"
}

broken() {
  tail -n 15 "$folder/$2" >&2
  die "$1 (log: quickstart.d/$2)"
}

# ---- The show ----

prompt() {
  say "$ scripts/llmchat.sh -k --url $url --model $model $conversation '$1'"
  "$checkout/scripts/llmchat.sh" -k --url "$url" --model "$model" "$conversation" "$1" ||
    broken 'the prompt was not answered' chatterd.log
  say
}

show() {
  say
  say 'A prompt, and the reply as it streams:'
  prompt 'Why is the sky blue?'
  say 'A second one; chatterd sends the whole conversation along, so the reply can know the first:'
  prompt 'What was my first question?'
  say 'The conversation in the database:'
  [[ -z $db_pid ]] || export PGPASSFILE=$folder/pgpass
  psql --no-psqlrc --pset=pager=off --pset=footer=off --dbname="$shown_db" --command="
    select name, case when length(message) > 90 then left(message, 87) || '...' else message end as message,
      to_char(time, 'HH24:MI:SS') as time
    from chatts where appid = '$conversation' order by seq" || broken 'the database did not answer' chatterd.log
}

serve() {
  say "chatterd serves at $url until ^C. From another terminal, for example:"
  say "  scripts/llmchat.sh -k --url $url --model $model my-app 'Hello'"
  say "  curl -kN $url/llmchat/ -d '{\"appID\":\"my-app\",\"model\":\"$model\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'"
  [[ -z $db_pid ]] || say "  PGPASSFILE=$folder/pgpass psql '$shown_db'"
  trap 'say && exit 0' INT
  local status=0
  wait "$chatterd_pid" || status=$?
  chatterd_pid=''
  broken "chatterd ended with status $status" chatterd.log
}

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
take_lock
install_and_build
start_database
find_ollama
start_chatterd
show
[[ -n $once ]] || serve
