# shellcheck shell=bash
# The shapes of bench.sh; sourced by it. Each is a function that runs its loads against the server $side (its
# address is ${url[$side]}, its process ${pid[$side]}, its database ${admin[$side]} if that may be filled) and
# notes figures, which are rows of the table.
# shellcheck disable=SC2034,SC2154  # bench.sh declares what is used here, and uses what is noted here

all_shapes=(one burst32 paced200 paced1000 short getchatts postchatt history table mixed handshakes idle)
bench_load=$checkout/build/release/bench_load
result='' # what bench_load said last

# The rows so far, as SHAPE|WHAT, with the number of digits of each; the values of one are in
# samples["SIDE|SHAPE|WHAT"], separated by spaces.
rows=()
declare -A digits=() samples=()
failures=() # a sentence each

# scaled NUMBER [AT-LEAST]: what --quick makes of it.
scaled() {
  local number=$1
  [[ -z $quick ]] || number=$((number / 20 > ${2:-1} ? number / 20 : ${2:-1}))
  printf '%s' "$number"
}
# The same of a time in ms, as bench_load takes it.
scaled_ms() { printf '%sms' "$(scaled "$1")"; }
pause_ms() { sleep "$(scaled "$1")e-3"; }

# figure WHAT VALUE DIGITS: a row of the table. Digits "sum" is for a number that is added up over the rounds.
figure() {
  local row="$shape|$1"
  [[ -n ${digits[$row]:-} ]] || rows+=("$row")
  digits[$row]=$3
  samples["$side|$row"]+=" $2"
}

# A figure of the last load. Calculations are awk's.
get() {
  [[ " $result " =~ \ $1=([^ ]+)\  ]] || die "bench_load says nothing of $1"
  printf '%s' "${BASH_REMATCH[1]}"
}
calculate() { awk "BEGIN { printf \"%.9g\", $1 }"; }

failed() { failures+=("$shape, $side, round $round: $1"); }

# note_failures STATUS FILE: what bench_load wrote to standard error.
note_failures() {
  local line
  if (($1 > 1)); then
    cat "$2" >&2
    [[ -z ${guard[$side]:-} ]] || tail -n 5 "$work/chatterd-$side.log" >&2
    die "$shape could not be run with $side"
  fi
  while IFS= read -r line; do failed "$line"; done <"$2"
}

# load NAME [OPTION...]: runs it to its end; its figures are for get.
load() {
  local status=0
  result=$("$bench_load" "$1" --url "${url[$side]}" --pid "${pid[$side]}" --aftermath "$(scaled_ms 300)" "${@:2}" 2>"$work/load.err") || status=$?
  note_failures "$status" "$work/load.err"
}

empty_table() {
  if can_fill; then
    sql "$side" <<<'truncate chatts'
  elif [[ -n $peer_reset ]]; then
    bash -c "$peer_reset" </dev/null >"$work/reset.log" 2>&1 || { tail -n 5 "$work/reset.log" >&2 && die '--peer-reset failed'; }
  fi
}

can_fill() { [[ -n ${admin[$side]:-} ]]; }
# Filled by the SQL given, and left as a table is after a while.
fill() { printf '%s;\n' "$1" 'vacuum (analyze) chatts' | sql "$side"; }

# ---- The shapes ----

# streams CLIENTS ANSWERS TOKENS MS-BETWEEN [RAMP-MS]
streams() {
  local answers clients
  answers=$(scaled "$2")
  clients=$(($1 < answers ? $1 : answers))
  load stream --clients "$clients" --count "$answers" --model "n=$(scaled "$3");d=$4ms" --ramp "$(scaled_ms "${5:-0}")"
}

stream_figures() {
  figure 'cpu us per line' "$(calculate "$(get cpu_s) * 1e6 / ($(get lines) + !$(get lines))")" 2
  figure 'ttft p50 ms' "$(get ttft_p50_ms)" 2
  figure 'relay p50 us' "$(get relay_p50_us)" 0
  figure 'relay p99 us' "$(get relay_p99_us)" 0
  figure 'streams per s' "$(get streams_s)" 1
  figure 'peak rss MiB' "$(get rss_peak_mib)" 1
  figure failed "$(get failed)" sum
}

shape_one() { streams 1 200 100 0; stream_figures; }
shape_burst32() { streams 32 600 100 0; stream_figures; }
shape_paced200() { streams 200 400 100 20 1000; stream_figures; }
shape_paced1000() { streams 1000 1000 100 50 2000; stream_figures; }
shape_short() { streams 32 2000 2 0; stream_figures; }

shape_getchatts() {
  can_fill || return 0
  local count
  count=$(scaled 100000)
  fill "insert into chatts (name, message, id, time)
    select 'user' || g % 50, 'Message ' || g || ': ' || repeat('lorem ipsum ', 8), gen_random_uuid(),
      now() - interval '1 day' + g * interval '1 microsecond'
    from generate_series(1, $count) g"
  load download --count 3
  figure 'MB per s' "$(get mb_s)" 1
  figure 'rows per s' "$(calculate "$count * $(get ok) / $(get wall_s)")" 0
  figure 'cpu us per row' "$(calculate "$(get cpu_s) * 1e6 / ($count * 3)")" 2
  figure 'rss growth MiB' "$(calculate "$(get rss_peak_mib) - $(get rss_start_mib)")" 1
  figure failed "$(get failed)" sum
}

shape_postchatt() {
  load requests --path /postchatt/ --body '{"name":"bench","message":"A message of a few words for all to read."}' \
    --clients "$(scaled 32)" --for "$(scaled_ms 5000)"
  figure 'requests per s' "$(get requests_s)" 0
  figure 'p50 ms' "$(get latency_p50_ms)" 2
  figure 'p99 ms' "$(get latency_p99_ms)" 2
  figure failed "$(get failed)" sum
}

# turns WHAT MESSAGES FILL: one prompt each to conversations of so many messages, in a table where the SQL
# FILL has put others.
turns() {
  local each
  each=$(scaled 20 5)
  empty_table
  fill "insert into chatts (name, message, id, time, appid)
    select case when m % 2 = 0 then 'user' else 'assistant' end, 'Message ' || m || ': ' || repeat('lorem ipsum ', 8),
      gen_random_uuid(), now() - interval '1 day' + m * interval '1 microsecond', 'turn-' || c
    from generate_series(0, $each - 1) c, generate_series(0, $2 - 1) m; $3"
  load stream --count "$each" --app turn- --model 'n=2;d=0'
  (($(get prompt_messages) == $2 + 1)) || failed "Ollama got $(get prompt_messages) messages instead of $(($2 + 1))"
  figure "$1: ms per turn" "$(get turn_p50_ms)" 2
  figure "$1: failed" "$(get failed)" sum
}

shape_history() {
  can_fill || return 0
  local messages
  for messages in "$(scaled 10 10)" "$(scaled 1000)" "$(scaled 10000)"; do turns "$messages messages" "$messages" ''; done
}

shape_table() {
  can_fill || return 0
  local count counts=("$(scaled 10000)")
  [[ -z $full ]] || ((round > 1)) || counts+=("$(scaled 10000000)")
  for count in "${counts[@]}"; do
    # In the order of the index: only so are ten million rows inserted in minutes.
    turns "$count other rows" 10 "insert into chatts (name, message, id, time, appid)
      select 'user', 'Message ' || g || ': ' || repeat('lorem ipsum ', 8), gen_random_uuid(), now() - interval '1 day',
        'other-' || lpad((g / 20)::text, 9, '0')
      from generate_series(1, $count) g"
  done
}

shape_mixed() {
  local streams status=0 failed_requests
  # They begin before the first request and end after the last.
  "$bench_load" stream --url "${url[$side]}" --clients "$(scaled 200)" --count "$(scaled 200)" --ramp "$(scaled_ms 1000)" \
    --model "n=$(scaled 500);d=20ms" >"$work/mixed" 2>"$work/mixed.err" &
  streams=$!
  children=("$streams")
  pause_ms 1000
  load requests --rate "$(scaled 1000)" --for "$(scaled_ms 8000)" --clients "$(scaled 32)"
  figure 'GET / p50 ms' "$(get latency_p50_ms)" 2
  figure 'GET / p99 ms' "$(get latency_p99_ms)" 2
  failed_requests=$(get failed)
  wait "$streams" || status=$?
  children=()
  note_failures "$status" "$work/mixed.err"
  result=$(<"$work/mixed")
  figure 'streams: relay p99 us' "$(get relay_p99_us)" 0
  figure failed "$(($(get failed) + failed_requests))" sum
}

shape_handshakes() {
  local kind options
  for kind in full resumed; do
    options=()
    [[ $kind == full ]] || options=(--resume)
    load handshakes --clients "$(scaled 16)" --for "$(scaled_ms 5000)" "${options[@]}"
    figure "$kind: connections per s" "$(get requests_s)" 0
    figure "$kind: cpu us each" "$(calculate "$(get cpu_s) * 1e6 / ($(get ok) + !$(get ok))")" 0
    figure "$kind: share resumed" "$(get resumed_share)" 3
    figure "$kind: failed" "$(get failed)" sum
  done
}

idle_figures() {
  load idle --for "$(scaled_ms 3000)"
  figure "$1: rss MiB" "$(get rss_end_mib)" 1
  figure "$1: cpu ms in 3 s" "$(calculate "$(get cpu_s) * 1e3")" 1
  figure "$1: threads" "$(get threads_end)" 0
}

shape_idle() {
  idle_figures 'at start'
  streams 1000 1000 100 50 2000
  figure 'the burst: failed' "$(get failed)" sum
  pause_ms 12000
  idle_figures '12 s after it'
}
