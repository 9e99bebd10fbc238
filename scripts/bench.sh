#!/usr/bin/env bash
# chatterd's benchmark; see --help.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/test-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/test-lib.sh"
# shellcheck source=scripts/bench-shapes.sh
. "$(dirname "${BASH_SOURCE[0]}")/bench-shapes.sh"

usage() {
  cat <<'END'
usage: scripts/bench.sh [--rounds N] [--full] [--against PROGRAM | --peer URL,PID ...] [SHAPE...]

Measures this checkout's chatterd, or compares it with another server, and prints a Markdown table of
medians over the rounds. It installs what is missing, builds, and runs chatterd with its default options, a
PostgreSQL of its own (fsync on), a stand-in for Ollama and the clients on this machine; all of them are gone
at the end. chatterd is started anew for each shape, with an empty table for each run. Every answer is
checked; the exit status is 1 if any failed. A round of all shapes takes about 90 s.
  --rounds N          runs of each shape (3)
  --full              also: 10,000,000 rows of other conversations in the shape table, in the first round
  --against PROGRAM   compare with this build of chatterd, which gets a database of its own: A and B run in
                      turn, B first in every second round; A/B is the ratio of their medians
  --peer URL,PID      compare with a server that runs already and keeps the same contract. Its Ollama has to
                      understand the same models as the stand-in here: see --ollama-port
  --ollama-port PORT  where the stand-in for Ollama listens (a free port), so that a peer can be told before
  --peer-reset COMMAND  empties the peer's table
  --peer-db CONNECTION  the peer's database, by libpq's connection string: its table is emptied and filled
                      by SQL. Without it getchatts, history and table are not run with the peer
  --quick             a twentieth of all numbers: a test of the benchmark, not of the server

What is measured: cpu is processor time of the server process; ttft the time from a request to its first
token; relay the time from Ollama's write of a line to the client's read of it; rss memory of the server.
  one        1 client, 200 answers of 100 tokens, as fast as they come
  burst32    32 clients, 600 answers of 100 tokens, as fast as they come
  paced200   200 clients, 400 answers of 100 tokens, one each 20 ms
  paced1000  1,000 clients, 1,000 answers of 100 tokens, one each 50 ms
  short      32 clients, 2,000 answers of 2 tokens: mostly the database
  getchatts  GET /getchatts/ of 100,000 rows, 3 times
  postchatt  32 clients POST /postchatt/ for 5 s
  history    one prompt to a conversation of 10, 1,000 and 10,000 messages
  table      one prompt to a conversation of 10 messages in a table with 10,000 others
  mixed      1,000 GET / a second over 32 connections for 8 s, beside 200 answers of a token each 20 ms
  handshakes 16 clients, a new connection for each GET /, for 5 s; then with resumed sessions for 5 s
  idle       memory and processor time without any client for 3 s: at the start, and 12 s after paced1000
END
}

wrong() {
  printf 'bench.sh: %s (--help explains)\n' "$*" >&2
  exit 2
}

rounds=3 full='' quick='' against='' peer='' peer_reset='' peer_db='' ollama_port=0 shapes=()
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --full) full=yes ;;
    --quick) quick=yes ;;
    --rounds | --against | --peer | --peer-reset | --peer-db | --ollama-port)
      (($# > 1)) || wrong "$1 needs a value"
      case $1 in
        --rounds) rounds=$2 ;;
        --against) against=$2 ;;
        --peer) peer=$2 ;;
        --peer-reset) peer_reset=$2 ;;
        --peer-db) peer_db=$2 ;;
        --ollama-port) ollama_port=$2 ;;
      esac
      shift
      ;;
    -*) wrong "unknown option $1" ;;
    *)
      [[ " ${all_shapes[*]} " == *" $1 "* ]] || wrong "there is no shape $1, only ${all_shapes[*]}"
      shapes+=("$1")
      ;;
  esac
  shift
done
[[ $rounds =~ ^[1-9][0-9]?$ ]] || wrong '--rounds needs a number from 1 to 99'
[[ $ollama_port =~ ^[0-9]{1,5}$ ]] || wrong '--ollama-port needs a port'
[[ -z $against || -z $peer ]] || wrong '--against and --peer exclude each other'
[[ -z $against || (-f $against && -x $against) ]] || wrong "--against: $against is not a program"
[[ -z $peer || ($peer =~ ^https?://[^,/]+:[0-9]+,([0-9]+)$ && -d /proc/${BASH_REMATCH[1]}) ]] ||
  wrong '--peer needs the URL of a server, such as https://127.0.0.1:9443, a comma and its process id'
[[ -n $peer || -z $peer_reset$peer_db ]] || wrong '--peer-reset and --peer-db need --peer'
((${#shapes[@]})) || shapes=("${all_shapes[@]}")

# ---- The servers ----
# A is this checkout's chatterd, B the other server, if there is one.

sides=(A)
declare -A program=() guard=() url=() pid=() database=() admin=()
ollama='' ollama_guard=''

# sql SIDE: runs its standard input in that server's database.
sql() {
  local password=()
  [[ -z ${program[$1]:-} ]] || password=(env "PGPASSWORD=$db_password")
  "${password[@]}" psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname="${admin[$1]}" >"$work/sql.log" 2>&1 && return 0
  tail -n 5 "$work/sql.log" >&2
  die "SQL failed in the database of $1"
}

make_database() {
  local name=bench_${1,,} password
  password=$(random_hex 16)
  admin[$1]="host=127.0.0.1 port=$db_port user=postgres dbname=postgres"
  printf '%s;\n' "create role $name login password '$password'" "create database $name owner $name" | sql "$1"
  admin[$1]="host=127.0.0.1 port=$db_port user=postgres dbname=$name"
  database[$1]="host=127.0.0.1 port=$db_port user=$name dbname=$name password=$password"
}

start_server() {
  local log=$work/chatterd-$1.log
  # By the environment, which other users can't see: the connection string holds a password.
  CHATTERD_DB=${database[$1]} STATE_DIRECTORY=$work/state-$1 launch TERM "$log" "${program[$1]}" --host 127.0.0.1 --port 0 \
    --cert "$work/chatterd.crt" --key "$work/chatterd.key" --ollama "$ollama"
  guard[$1]=$launched
  url[$1]=$(address_in "$log" "$launched") || { tail -n 5 "$log" >&2 && die "chatterd ($1) did not start"; }
  pid[$1]=$(pgrep --parent "$launched")
}

stop_server() {
  [[ -z ${guard[$1]:-} ]] || stop_process "${guard[$1]}"
  guard[$1]=''
}

stop_all() {
  trap '' INT TERM HUP # once is enough
  for side in "${sides[@]}"; do stop_server "$side"; done
  [[ -z $ollama_guard ]] || stop_process "$ollama_guard"
  clean_up
}

start_all() {
  trap stop_all EXIT
  quietly "$work/certificate.log" "$checkout/scripts/make-cert.sh" --out-dir "$work" localhost 127.0.0.1
  private_db_start "$work" max_connections=200
  launch TERM "$work/ollama.log" "$checkout/build/release/bench_ollama" --port "$ollama_port"
  ollama_guard=$launched
  ollama=$(address_in "$work/ollama.log" "$launched") || { cat "$work/ollama.log" >&2 && die 'the stand-in for Ollama did not start'; }
  program[A]=$checkout/chatterd
  [[ -z $against$peer ]] || sides=(A B)
  if [[ -n $against ]]; then program[B]=$(realpath "$against"); fi
  if [[ -n $peer ]]; then
    url[B]=${peer%,*} pid[B]=${peer##*,}
    [[ -z $peer_db ]] || admin[B]=$peer_db
  fi
  local side
  for side in "${!program[@]}"; do make_database "$side"; done
}

# ---- Rounds ----

side='' shape='' round=0

# Shapes that ask how memory grows need a server that has not grown yet.
needs_new_server() { ((round == 1)) || [[ $shape == getchatts || $shape == idle ]]; }

run_shape() {
  local order
  for ((round = 1; round <= rounds; round++)); do
    order=("${sides[@]}")
    # Which one is first makes a difference of some percent, whatever is compared.
    if ((round % 2 == 0 && ${#sides[@]} == 2)); then order=(B A); fi
    for side in "${order[@]}"; do
      say "$shape, round $round, $side" >&2
      if [[ -n ${program[$side]:-} ]] && needs_new_server; then
        stop_server "$side"
        start_server "$side"
      fi
      empty_table
      "shape_$shape"
    done
  done
  for side in "${!program[@]}"; do stop_server "$side"; done
}

# ---- The report ----

# summary DIGITS NUMBER...: the median, or the sum; nothing of nothing.
summary() {
  local kind=$1
  shift
  (($#)) || return 0
  printf '%s\n' "$@" | sort -g |
    awk -v kind="$kind" '{ v[NR] = $1; s += $1 } END { print kind == "sum" ? s : (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

# table_line SHAPE WHAT A [B A/B]
table_line() {
  printf '| %-10s | %-31s | %10s |' "${@:1:3}"
  (($# == 3)) || printf ' %10s | %6s |' "${@:4}"
  printf '\n'
}

row_of() {
  local row=$1 kind=${digits[$1]} values=() shown=() value ratio=()
  for side in "${sides[@]}"; do
    # shellcheck disable=SC2086  # numbers
    value=$(summary "$kind" ${samples["$side|$row"]:-})
    values+=("${value:-0}")
    shown+=("$([[ -z $value ]] && printf -- - || printf '%.*f' "${kind/sum/0}" "$value")")
  done
  if ((${#sides[@]} == 2)); then
    ratio=(-)
    [[ $kind == sum || ${values[1]} == 0 || ${shown[0]} == - ]] || ratio=("$(printf '%.2f' "$(calculate "${values[0]} / ${values[1]}")")")
  fi
  table_line "${row%%|*}" "${row#*|}" "${shown[@]}" "${ratio[@]}"
}

conditions() {
  local commit cpu memory_kib
  commit=$(git -C "$checkout" describe --always --dirty=', with changes' 2>/dev/null || printf 'unknown')
  cpu=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
  memory_kib=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
  say "- $(date -u '+%F %R') UTC; $(nproc) x ${cpu:-$(uname -m)}, $((memory_kib / 1048576)) GiB; $(uname -sr)"
  say "- chatterd of commit $commit, built by $(${CXX:-g++} --version | head -n 1), ${CXXFLAGS:--O2 -g}"
  say "- cpp-httplib $(pkg-config --modversion cpp-httplib), OpenSSL $(pkg-config --modversion openssl)," \
    "$("$db_bin/postgres" --version | sed 's/^postgres (\(.*\)) \([^ ]*\).*/\1 \2/') with fsync, on $(stat --file-system --format=%T "$db_home")"
  say '- server, clients, stand-in for Ollama and PostgreSQL on this one machine'
  say "- medians of $rounds round$( ((rounds == 1)) || printf s)${quick:+; --quick: too small to mean anything}"
  [[ -z $against$peer ]] || say "- A is this checkout, B is ${against:-${peer%,*}}; both run in turn"
  say
}

table_head() {
  if ((${#sides[@]} == 1)); then table_line shape what median; else table_line shape what A B A/B; fi
  say "|---|---|--:|$( ((${#sides[@]} == 1)) || printf -- '--:|--:|')"
}

export LC_ALL=C # numbers have points
need_packages "${build_packages[@]}" postgresql-server procps
make_work_folder
# A thousand streams are a thousand descriptors each of the clients and of the stand-in.
ulimit -n "$(ulimit -Hn)"
say 'Building' >&2
quietly "$work/build.log" make -C "$checkout" -j"$(nproc)" chatterd build/release/bench_load build/release/bench_ollama
start_all
conditions
table_head
for shape in "${shapes[@]}"; do
  rows=()
  run_shape
  for row in "${rows[@]}"; do row_of "$row"; done
done
((${#failures[@]} == 0)) || printf '\nFailures:\n%s' "$(printf -- '- %s\n' "${failures[@]}")"$'\n'
((${#failures[@]} == 0))
