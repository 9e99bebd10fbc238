#!/usr/bin/env bash
# POST /postchatt/: one public chatt; see --help.
set -euo pipefail
# shellcheck source=scripts/client-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/client-lib.sh"

help() { usage "NAME 'message'" 'Posts a chatt that everybody can read.'; }

read_options "$@"
((${#arguments[@]} == 2)) || die "a name and a message are needed: scripts/$script alice 'Hello'"
json_quote "${arguments[0]}" && name=$REPLY
json_quote "${arguments[1]}" && request POST /postchatt/ "{\"name\":$name,\"message\":$REPLY}" nothing
