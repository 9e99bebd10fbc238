#!/usr/bin/env bash
# POST /llmprep/: begins a conversation anew; see --help.
set -euo pipefail
# shellcheck source=scripts/client-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/client-lib.sh"

help() {
  usage 'APPID [ROLE CONTENT]...' 'Deletes the conversation APPID and stores these messages in its place, for example:
  scripts/llmprep.sh my-app system "Answer in one sentence."'
}

read_options "$@"
((${#arguments[@]} % 2)) || die 'an APPID is needed, then a role and a content for each message (--help)'
json_quote "${arguments[0]}" && app_id=$REPLY
messages=''
for ((i = 1; i < ${#arguments[@]}; i += 2)); do
  message_json "${arguments[i]}" "${arguments[i + 1]}" && messages+=${messages:+,}$REPLY
done
request POST /llmprep/ "{\"appID\":$app_id,\"messages\":[$messages]}" nothing
