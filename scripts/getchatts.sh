#!/usr/bin/env bash
# GET /getchatts/: the public chatts; see --help.
set -euo pipefail
# shellcheck source=scripts/client-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/client-lib.sh"

help() { usage '' 'Prints the public chatts, oldest first, each as: TIME NAME: MESSAGE'; }

# The reply is an array of arrays [name, message, id, time]. It is read up to each "]", so that a long one
# is never held as a whole: that would take bash minutes.
print_chatts() {
  local row='' part
  while IFS= read -r -d ']' part; do
    row+=$part
    if take_row "$row"; then
      printf '%s %s: %s\n' "${fields[3]}" "${fields[0]}" "${fields[1]}"
      row=''
    else
      row+=']' # the bracket was in a string
    fi
  done
}

# Sets fields to the four texts; fails while a string is not complete.
take_row() {
  local json=$1
  fields=()
  while json=${json#"${json%%\"*}"} && [[ -n $json ]]; do
    json_take_string && json_text "$REPLY" && fields+=("$REPLY") || return 1
  done
  ((${#fields[@]} == 4))
}

read_options "$@"
((${#arguments[@]} == 0)) || die "no argument is expected: ${arguments[0]}"
request GET /getchatts/ '' print_chatts
