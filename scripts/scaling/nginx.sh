#!/usr/bin/env bash
# Two chatterd behind nginx; docs/scaling.md explains, --help says what is shown.
set -euo pipefail
# shellcheck source=scripts/scaling/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
read_arguments "$@" <<'END'
Two chatterd on one database behind nginx: answers stream unbuffered, a conversation stays with its chatterd,
one that is killed is passed over, a rolling restart loses no acknowledged turn, and also when stickiness
fails, two chatterd never interleave a conversation.
END

# nginx_setup: the block of docs/scaling.md with private ports.
nginx_setup() {
  local folder=$work/nginx part
  mkdir "$folder"
  document_block nginx | sed -e "s|127.0.0.1:8081|127.0.0.1:${port[one]}|; s|127.0.0.1:8082|127.0.0.1:${port[two]}|" \
    -e "s|listen 443|listen 127.0.0.1:${port[nginx]}|; s|/etc/ssl/chatterd|$work/chatterd|" >"$folder/chatterd.conf"
  {
    say 'events { worker_connections 4096; }' "pid $folder/pid;"
    say 'http {' "access_log off; include $folder/chatterd.conf;"
    for part in client_body proxy fastcgi uwsgi scgi; do say "${part}_temp_path $folder/$part;"; done
    say '}'
  } >"$folder/nginx.conf"
}

start_one() {
  start_chatterd "$1" "${port[$1]}" "host=127.0.0.1 port=$db_port user=chatter dbname=chatterdb password=$db_password" \
    "http://127.0.0.1:${port[ollama]}" --http
}

# arrivals ROUTE BODY: for each line of the answer, but empty ones, the millisecond at which it came.
arrivals() {
  local line
  curl -q --silent --no-buffer --cacert "$work/chatterd.crt" --max-time 60 "$url/$1/" --data "$2" |
    while IFS= read -r line; do
      [[ -z $line ]] || { now_ms && say "$REPLY"; }
    done
}

# streams_unbuffered ROUTE BODY. The stand-in sends a line each 40 ms: from a buffer they would come together.
streams_unbuffered() {
  local times i apart=0
  mapfile -t times < <(arrivals "$@")
  for ((i = 1; i < ${#times[@]}; i++)); do ((times[i] - times[i - 1] < 20)) || apart=$((apart + 1)); done
  say "  ${#times[@]} lines came within $((times[-1] - times[0])) ms, $apart of them 20 ms or more behind the one before"
  ((${#times[@]} >= 12 && apart * 4 >= ${#times[@]} * 3))
}

requests_of() { grep -c 'event=request' "$work/$1.log" || true; }

# With X-App-ID all requests of a conversation are at one of the two. Any route shows that; this one is quick.
is_sticky() {
  local app i before one=0 two=0 moved=0
  for app in sticky-{1..16}; do
    before=$(requests_of one)
    for i in 1 2 3; do
      curl -q --silent --fail --cacert "$work/chatterd.crt" --output /dev/null --header "X-App-ID: $app" "$url/" || return 1
    done
    case $(($(requests_of one) - before)) in
      0) two=$((two + 1)) ;;
      3) one=$((one + 1)) ;;
      *) moved=$((moved + 1)) ;;
    esac
  done
  say "  of 16 conversations $one stayed at the one, $two at the other, $moved at neither"
  ((moved == 0 && one > 0 && two > 0))
}

# notices_leaving: a client that leaves is seen by chatterd through nginx, so Ollama stops generating.
notices_leaving() {
  curl -q --silent --cacert "$work/chatterd.crt" --max-time 0.4 --output /dev/null "$url/llmchat/" \
    --data '{"appID":"leaving","model":"stand-in","messages":[{"role":"user","content":"leaving#1"}]}' || true
  eventually 5 grep -qs 'reason="the client left"' "$work/one.log" "$work/two.log"
}

# Clients of one conversation at both chatterd at once. Within it each row must be newer than the one before:
# a prompt that was stored amid another's turn is older than the reply before it.
never_interleaves() {
  local i pids=()
  for i in {1..5}; do
    turn "http://127.0.0.1:${port[one]}" shared "shared#$i-one" & pids+=($!)
    turn "http://127.0.0.1:${port[two]}" shared "shared#$i-two" & pids+=($!)
  done
  for i in "${pids[@]}"; do wait "$i" || return 1; done
  [[ $(sql "select count(*) from (select time < lag(time) over (order by seq) as older from chatts where appid = 'shared') as rows where older") == 0 ]]
}

restart_each() {
  local name
  for name in one two; do
    stop "$name"
    start_one "$name"
    # nginx leaves one alone for fail_timeout once it was away.
    wait_for_new_request "$name" || return 1
  done
}
wait_for_new_request() {
  local before
  before=$(requests_of "$1")
  eventually 20 more_requests "$1" "$before"
}
more_requests() { (($(requests_of "$1") > $2)); }

need_idle nginx
begin
begin_database
declare -A port
for name in nginx one two ollama; do free_port && port[$name]=$REPLY; done
url=https://localhost:${port[nginx]}
nginx_setup
start_ollama ollama "${port[ollama]}" --token-ms 40
start_one one
start_one two
start nginx QUIT "$(PATH=$PATH:/usr/sbin command -v nginx)" -e stderr -c "$work/nginx/nginx.conf" -g 'daemon off;'
eventually 10 is_open "${port[nginx]}" || die "nginx did not start: $(<"$work/nginx.log")"

part 'Through nginx:'
holds 'an answer of /llmchat/ arrives line by line, as Ollama sends it' streams_unbuffered llmchat \
  '{"appID":"streaming","model":"stand-in","messages":[{"role":"user","content":"streaming#1"}]}'
holds 'an answer of /llmprompt/ too' streams_unbuffered llmprompt '{"model":"stand-in","prompt":"How do you do?"}'
holds 'a conversation that is named in X-App-ID stays at one chatterd' is_sticky
holds 'a client that leaves is noticed' notices_leaving
holds "a body that is too large is refused in chatterd's form" \
  test "$(head -c 5000000 /dev/zero | curl -q --silent --cacert "$work/chatterd.crt" --data-binary @- "$url/postchatt/")" = '{"error":"The body is too large."}'
part 'Without stickiness:'
holds 'two chatterd do not interleave a conversation' never_interleaves
holds 'the database agrees with every turn so far' is_clean
part 'One chatterd killed (kill -9) under 8 conversations:'
holds 'the other goes on' under_load "$url" 'killed' crash one
holds 'nothing acknowledged was lost' is_clean
start_one one
holds 'started again, it is used again' under_load "$url" 'started again' wait_for_new_request one
part 'Both restarted in turn (SIGTERM) under 8 conversations:'
holds 'turns go on' under_load "$url" 'restarted' restart_each
holds 'nothing acknowledged was lost' is_clean
part 'Both stopped:'
stop one
stop two
holds "nginx's own error is one of chatterd's form" \
  test "$(curl -q --silent --cacert "$work/chatterd.crt" "$url/getchatts/")" = '{"error":"chatterd is away; try again."}'
say
say 'All of it held.'
