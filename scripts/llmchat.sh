#!/usr/bin/env bash
# POST /llmchat/: one turn of a conversation; see --help.
set -euo pipefail
# shellcheck source=scripts/client-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/client-lib.sh"

help() {
  usage "[--model NAME] [--system TEXT] APPID 'prompt'" \
    'Sends a prompt of the conversation APPID and prints the reply as it streams.'
}
option_names=([--model]="the model; default: \$CHATTERD_MODEL, else gemma3:270m"
  [--system]='a message of the role "system" to store before the prompt')

# Each event's data is one line of Ollama's; an event named error has {"error": "..."}.
print_reply() {
  local line data event='' failed=0
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line%$'\r'}
    case $line in
      '') event='' ;;
      event:*) event=${line#event:} && event=${event# } ;;
      data:*)
        data=${line#data:}
        data=${data# }
        if [[ $event == error ]]; then
          stream_error "$data"
          failed=1
        elif json_member "$data" message && json_member "$REPLY" content && json_text "$REPLY"; then
          print_text "$REPLY"
        fi
        ;;
    esac
  done
  end_text
  return "$failed"
}

read_options "$@"
((${#arguments[@]} == 2)) || die "an APPID and a prompt are needed: scripts/$script my-app 'Why is the sky blue?'"
json_quote "${arguments[0]}" && app_id=$REPLY
json_quote "${options[--model]:-${CHATTERD_MODEL:-gemma3:270m}}" && model=$REPLY
message_json user "${arguments[1]}" && messages=$REPLY
if [[ -n ${options[--system]:-} ]]; then
  message_json system "${options[--system]}" && messages=$REPLY,$messages
fi
request POST /llmchat/ "{\"appID\":$app_id,\"model\":$model,\"messages\":[$messages],\"stream\":true}" print_reply
