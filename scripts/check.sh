#!/usr/bin/env bash
# What `make check` checks, without building anything. Each problem is one line; exit 1 if there is any.
#  - The product's includes point one way: a file includes only files of its own layer or of one below.
#  - Only db* knows libpq, and only the server's side knows cpp-httplib.
#  - shellcheck has nothing to say about the scripts.
set -euo pipefail
case ${1:-} in
  '') ;;
  --help | -h) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit 0 ;;
  *) printf 'check.sh: no argument is expected\n' >&2 && exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# From the bottom to the top, by the names of the files without .cpp and .hpp. Files of one layer may
# include each other as long as their headers form no cycle.
layers=(
  'result'
  'text'
  'json_view'
  'json_check'
  'log metrics net live'
  'listener ndjson sse http1 request pulse env_file'
  'access privileges config service'
  'tls'
  'connection'
  'workers pump lender cpu_latency'
  'server door serving exchange'
  'db db_connection db_health db_servers db_schema db_statements db_turns'
  'spool'
  'keeper'
  'upstreams'
  'ollama'
  'turns'
  'relay'
  'reply'
  'check health'
  'handlers chat'
  'admin'
  'reload'
  'chatterd'
)

problems=0
problem() {
  printf '%s\n' "$*"
  problems=$((problems + 1))
}

declare -A height=()
read_layers() {
  local i name
  for i in "${!layers[@]}"; do
    for name in ${layers[i]}; do height[$name]=$i; done
  done
}

stem() {
  local name=${1##*/}
  printf '%s' "${name%.*}"
}

# "FILE:LINE INCLUDED" for each #include "..." of the top level.
own_includes() {
  grep -HnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' -- *.cpp *.hpp 2>/dev/null |
    sed -E 's/^([^:]*:[0-9]+):.*include[[:space:]]*"([^"]*)".*/\1 \2/' || true
}

check_layers() {
  local file place included from to
  for file in *.cpp *.hpp; do
    [[ ! -e $file || -n ${height[$(stem "$file")]:-} ]] || problem "$file: not in the list of layers in scripts/check.sh"
  done
  while read -r place included; do
    [[ $included != *.inc ]] || continue # made by the build from a file that includes nothing
    from=${height[$(stem "${place%%:*}")]:-}
    to=${height[$(stem "$included")]:-}
    if [[ ! -e $included ]]; then
      problem "$place: includes $included, which is not a file of the top level"
    elif [[ -n $from && -n $to ]] && ((from < to)); then
      problem "$place: includes $included, which is of a layer above"
    fi
  done < <(own_includes)
}

check_cycles() {
  local loop
  # tsort names the members of each cycle on standard error.
  loop=$(own_includes | grep '^[^:]*\.hpp:' | sed 's/:[0-9]*//' | tsort 2>&1 >/dev/null |
    sed -n 's/^tsort: \([^ ]*\.hpp\)$/\1/p' | tr '\n' ' ') || true
  [[ -z $loop ]] || problem "headers that include each other: $loop"
}

# only_in HEADER WHO FILE-PATTERN...: nobody else includes <HEADER>.
only_in() {
  local header=$1 who=$2 place pattern
  shift 2
  while IFS= read -r place; do
    for pattern in "$@"; do
      # shellcheck disable=SC2053  # a pattern it is
      [[ ${place%%:*} != $pattern ]] || continue 2
    done
    problem "$place: includes $header, which only $who may"
  done < <(grep -HnE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]$header" -- *.cpp *.hpp 2>/dev/null | cut -d: -f1,2)
}

check_scripts() {
  local line script scripts=()
  for script in scripts/*.sh scripts/scaling/*.sh tests/*.sh .ci/run packaging/{announce,certbot-hook,make-deb,reload} packaging/debian/*.post*; do
    [[ ! -f $script ]] || scripts+=("$script")
  done
  if ! command -v shellcheck >/dev/null; then
    problem 'shellcheck is missing: sudo apt-get install shellcheck'
    return 0
  fi
  while IFS= read -r line; do
    problem "$line"
  done < <(shellcheck --format=gcc "${scripts[@]}" || true)
}

read_layers
check_layers
check_cycles
only_in libpq-fe.h 'db*' 'db*.cpp' 'db*.hpp'
only_in httplib.h 'server*, exchange*, handlers* and chatterd.cpp' 'server*' 'exchange*' 'handlers*' chatterd.cpp
check_scripts
((problems == 0))
