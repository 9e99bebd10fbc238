#!/usr/bin/env bash
# POST /llmprompt/: a prompt without a conversation; see --help.
set -euo pipefail
# shellcheck source=scripts/client-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/client-lib.sh"

help() { usage "[--model NAME] 'prompt'" 'Sends a prompt that is not stored and prints the reply as it streams.'; }
option_names=([--model]="the model; default: \$CHATTERD_MODEL, else gemma3:270m")

# Ollama's own lines, one JSON object each.
print_reply() {
  local line failed=0
  while IFS= read -r line || [[ -n $line ]]; do
    if json_member "$line" error; then
      stream_error "$line"
      failed=1
    elif json_member "$line" response && json_text "$REPLY"; then
      print_text "$REPLY"
    fi
  done
  end_text
  return "$failed"
}

read_options "$@"
((${#arguments[@]} == 1)) || die "one prompt is needed: scripts/$script 'Why is the sky blue?'"
json_quote "${options[--model]:-${CHATTERD_MODEL:-gemma3:270m}}" && model=$REPLY
json_quote "${arguments[0]}" && prompt=$REPLY
request POST /llmprompt/ "{\"model\":$model,\"prompt\":$prompt,\"stream\":true}" print_reply
