#!/usr/bin/env bash
# GET /: whether a chatterd answers; see --help.
set -euo pipefail
# shellcheck source=scripts/client-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/client-lib.sh"

help() { usage '' 'Prints what chatterd says of itself.'; }

print_greeting() {
  local text
  text=$(cat)
  json_text "$text" || REPLY=$text
  printf '%s\n' "$REPLY"
}

read_options "$@"
((${#arguments[@]} == 0)) || die "no argument is expected: ${arguments[0]}"
request GET / '' print_greeting
