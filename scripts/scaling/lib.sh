# shellcheck shell=bash
# Shared by the scripts of this folder; to be sourced. Each shows one configuration of docs/scaling.md at work
# on this machine: on private ports, in a folder of its own, and it stops exactly what it started.
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/test-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../test-lib.sh"

# read_arguments "$@" <WHAT-IT-SHOWS: these scripts have no options.
read_arguments() {
  case ${1:-} in
    '') return 0 ;;
    --help | -h)
      say "usage: scripts/scaling/${0##*/}"
      say
      cat
      say 'Installs what is missing, without starting or enabling its services, and builds; everything it starts'
      say 'is gone at the end. Exit status 0: all that it shows is so. docs/scaling.md explains.'
      exit 0
      ;;
    *) die "unknown argument $1 (--help explains)" ;;
  esac
}

# ---- What is shown ----

# part TITLE
part() { printf '\n%s\n' "$*"; }

# holds SENTENCE COMMAND...: the sentence is true if the command succeeds; otherwise the script ends here.
holds() {
  local sentence=$1
  shift
  if "$@"; then
    say "  ok: $sentence"
    return 0
  fi
  say "  NOT SO: $sentence"
  show_logs
  exit 1
}

show_logs() {
  local log
  for log in "$work"/*.log; do
    [[ -s $log ]] || continue
    printf '\n%s, its end:\n' "${log##*/}" >&2
    tail -n 8 "$log" >&2
  done
}

# eventually SECONDS COMMAND...
eventually() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < end)) || return 1
    sleep 0.05
  done
}

# now_ms: sets REPLY. Reading the clock by a program would cost more than what is measured.
now_ms() { REPLY=$((${EPOCHREALTIME/[.,]/} / 1000)); }

# document_block KIND: the block of that kind in docs/scaling.md, so that what is shown is what is written there.
document_block() {
  awk -v fence="\`\`\`$1" '$0 == fence { inside = 1; next } /^```/ { inside = 0 } inside' "$checkout/docs/scaling.md" | grep . ||
    die "docs/scaling.md has no block of the kind $1"
}

# ---- Packages whose services stay off ----

# need_idle PACKAGE...: installs what is missing of packages that bring a service of the same name. It is
# neither started now nor at the next boot; one that was installed before stays as it is.
policy=/usr/sbin/policy-rc.d
need_idle() {
  local name missing=()
  for name in "$@"; do is_installed "$name" || missing+=("$name"); done
  ((${#missing[@]})) || return 0
  # A subshell, for its traps: they run behind a ^C as well.
  (
    # Debian's way to say which services an installation may start; one that is there has its reasons.
    if [[ ! -e $policy ]]; then
      trap 'as_root rm -f "$policy"' EXIT
      trap 'exit 130' INT TERM HUP
      printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
      as_root chmod +x "$policy"
    fi
    need_packages "${missing[@]}"
  )
  for name in "${missing[@]}"; do as_root update-rc.d "$name" disable >/dev/null 2>&1 || true; done
}

# ---- Processes ----

declare -A guard=() # name -> the guard's process id, as launch has it
started=()          # names in their order

# start NAME SIGNAL COMMAND...: in the background, with its output in $work/NAME.log. SIGNAL ends it.
start() {
  launch "$2" "$work/$1.log" "${@:3}"
  guard[$1]=$launched
  started+=("$1")
}

stop() {
  [[ -z ${guard[$1]:-} ]] || stop_process "${guard[$1]}"
  guard[$1]=''
}

# crash NAME: kill -9, and the end of it.
crash() {
  pkill --signal KILL --parent "${guard[$1]}" || true
  wait "${guard[$1]}" 2>/dev/null || true
  guard[$1]=''
}

stop_all() {
  local i
  trap '' INT TERM HUP # once is enough
  rm -f "$work/load"
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do stop "${started[i]}"; done
  clean_up
}

# free_port: sets REPLY to one below those that the kernel hands out to others.
free_port() {
  local i
  for ((i = 0; i < 100; i++)); do
    REPLY=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    is_open "$REPLY" || return 0
  done
  die 'no free port'
}
is_open() { (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# ---- What every configuration has ----

# The folder, the build and a certificate.
begin() {
  need_packages "${build_packages[@]}" postgresql-server procps
  make_work_folder
  trap stop_all EXIT
  say 'Building (minutes, the first time)'
  quietly "$work/build.log" make -C "$checkout" -j"$(nproc)" chatterd stand-in
  quietly "$work/certificate.log" "$checkout/scripts/make-cert.sh" --out-dir "$work" localhost 127.0.0.1
}

# PostgreSQL as private_db_start has it, with the role chatter and its database chatterdb.
begin_database() {
  private_db_start "$work"
  export PGPASSWORD=$db_password PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE=chatterdb
  PGDATABASE=postgres sql "create role chatter login password '$db_password'"
  PGDATABASE=postgres sql 'create database chatterdb owner chatter'
}

# sql TEXT [PORT]: as the superuser; columns apart by |.
sql() { PGPORT=${2:-$db_port} psql --no-psqlrc --quiet --no-align --tuples-only --set=ON_ERROR_STOP=1 --command="$1"; }

# start_ollama NAME PORT [OPTION...]: a stand-in.
start_ollama() {
  start "$1" TERM "$checkout/build/release/ollama_stand_in" --port "$2" "${@:3}"
  address_in "$work/$1.log" "${guard[$1]}" >/dev/null || die "the stand-in for Ollama did not start (port $2)"
}

# start_chatterd NAME PORT DB OLLAMA [OPTION...]; ready when this returns.
start_chatterd() {
  # By the environment, which other users can't see: the connection string holds a password.
  CHATTERD_DB=$3 start "$1" TERM "$checkout/chatterd" --host 127.0.0.1 --port "$2" --state-dir "$work/state-$1" --ollama "$4" "${@:5}"
  address_in "$work/$1.log" "${guard[$1]}" >/dev/null && return 0
  show_logs
  die "$1 did not start"
}

# ---- Turns ----
# Each is written down with what became of it, and judge compares that with the database.

# turn URL APP PROMPT [CURL-OPTION...]: one prompt. A line of $work/turns for it: conversation, prompt, status, "whole" if the
# stream had its last line. Succeeds if it was whole.
turn() {
  local url=$1 app=$2 prompt=$3 answer=$work/answer.$BASHPID status whole=''
  shift 3
  status=$(curl -q --silent --no-buffer --cacert "$work/chatterd.crt" --max-time 60 --output "$answer" --write-out '%{http_code}' "$@" \
    "$url/llmchat/" --data "{\"appID\":\"$app\",\"model\":\"stand-in\",\"messages\":[{\"role\":\"user\",\"content\":\"$prompt\"}]}") || true
  # No answer at all leaves no file.
  ! grep -qs '"done":true' "$answer" || grep -qs '^event: error' "$answer" || whole=whole
  printf '%s\t%s\t%s\t%s\n' "$app" "$prompt" "$status" "$whole" >>"$work/turns"
  rm -f "$answer"
  [[ $status == 200 && -n $whole ]]
}

clients=() loads=0
# start_load URL CONVERSATIONS: in each, a new one, a turn follows a turn until stop_load.
start_load() {
  local i
  : >"$work/load"
  loads=$((loads + 1))
  for ((i = 1; i <= $2; i++)); do
    keep_prompting "$1" "talk-$loads-$i" &
    clients+=($!)
  done
}
keep_prompting() {
  local n
  # The file is gone when the script is.
  for ((n = 1; ; n++)); do
    [[ -e $work/load ]] || return 0
    turn "$1" "$2" "$2#$n" --header "X-App-ID: $2" || sleep 0.2
  done
}
stop_load() {
  rm -f "$work/load"
  wait "${clients[@]}"
  clients=()
}
# count_turns STATUS [WHOLE]
count_turns() { awk -F'\t' -v status="$1" -v whole="${2:-}" '$3 == status && (whole == "" || $4 == whole)' "$work/turns" 2>/dev/null | wc -l; }
whole_turns_reach() { (($(count_turns 200 whole) >= $1)); }

statuses() { cut -f3 "$work/turns" | sort | uniq -c | awk '{ printf "%s%s x %s", (NR == 1 ? "" : ", "), $2, $1 }'; }

# under_load URLS WHAT COMMAND...: 8 conversations at each of the URLs (a space apart). Turns are under way before the command, and go on behind it. Begins a new log
# of turns and says what became of them.
under_load() {
  local urls=$1 what=$2 url before
  shift 2
  : >"$work/turns"
  for url in $urls; do start_load "$url" 8; done
  eventually 30 whole_turns_reach 16 || return 1
  "$@" || return 1
  before=$(count_turns 200 whole)
  eventually 30 whole_turns_reach $((before + 16)) || return 1
  stop_load
  say "  $what: $(count_turns 200 whole) whole turns, $(($(wc -l <"$work/turns") - $(count_turns 200 whole))) others; statuses: $(statuses)"
}

# judge [PORT]: what contradicts the turns' log in the database; nothing is what one wants. A turn with status 200
# is acknowledged: its prompt has to be there once. Where its stream was whole, so has the reply, right behind it.
judge() {
  {
    printf '%s\n' "create temp table turns (app text, prompt text, status int, whole text);" '\copy turns from pstdin'
    cat "$work/turns"
    printf '%s\n' '\.' "
      with rows as (select *, lead(name) over talk as next, lag(name) over talk as before
                    from chatts where appid is not null window talk as (partition by appid order by seq)),
           stored as (select turns.*, count(rows.id) as times, bool_or(rows.next = 'assistant') as answered
                      from turns left join rows on rows.appid = app and rows.message = prompt and rows.name = 'user' group by 1, 2, 3, 4)
      select 'acknowledged and lost: ' || prompt from stored where status = 200 and times = 0
      union all select 'stored twice: ' || prompt from stored where times > 1
      union all select 'without its reply: ' || prompt from stored where whole <> '' and answered is not true
      union all select 'a reply behind no prompt: ' || message from rows where name = 'assistant' and before is distinct from 'user';"
  } | PGPORT=${1:-$db_port} psql --no-psqlrc --quiet --no-align --tuples-only --set=ON_ERROR_STOP=1 || say 'the database did not answer'
}
is_clean() { [[ -z $(judge "$@" | tee /dev/stderr) ]]; }
