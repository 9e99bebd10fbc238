#!/usr/bin/env bash
# Tests of scripts/, called by scripts/test.sh (which sets CHATTERD_TEST_DB): real scripts against the real
# chatterd and the stand-in for Ollama. Prints a line "ok: NAME" or "FAILED: NAME" for each test.
#   tests/scripts_test.sh [PATTERN]     only tests whose name matches, such as '*quickstart*'
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

pattern=${1:-}
scripts=$checkout/scripts
: "${CHATTERD_TEST_DB:?a connection string of a superuser; scripts/test.sh sets it}"
[[ $CHATTERD_TEST_DB =~ port=([0-9]+) ]]
# For setup-db.sh and psql; the password stands in PGPASSWORD.
export PGHOST=127.0.0.1 PGPORT=${BASH_REMATCH[1]} PGUSER=postgres PGDATABASE=postgres
database=scripts_test_$$

work=$(mktemp -d "${TMPDIR:-/tmp}/scripts-test.XXXXXX")
chatterd_pid='' stand_in_pid=''
clean_up() {
  trap '' INT TERM HUP
  [[ -z $chatterd_pid ]] || stop_process "$chatterd_pid"
  [[ -z $stand_in_pid ]] || stop_process "$stand_in_pid"
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# shellcheck source=tests/checks.sh
. "$checkout/tests/checks.sh"

# Succeeds if the command fails, with its standard error in $error.
fails() {
  local status=0 file=$work/error.$BASHPID
  "$@" 2>"$file" || status=$?
  error=$(<"$file")
  ((status == 1)) || { printf 'status %s instead of 1: %s\n%s\n' "$status" "$*" "$error" && return 1; }
}
rows_of() {
  psql --no-psqlrc -qAt --dbname="$database" --command="select name, message from chatts where appid = '$1' order by seq"
}
route() { "$scripts/$1.sh" -k --url "$url" "${@:2}"; }
chat() { route llmchat --model stand-in "$@"; }

# A curl that answers what the test says, for what neither chatterd nor the stand-in do on request.
canned_curl() {
  mkdir -p "$work/bin"
  printf '#!/usr/bin/env bash\ncat >/dev/null\n%s\n' "$1" >"$work/bin/curl"
  chmod +x "$work/bin/curl"
  PATH=$work/bin:$PATH
}
stream_head='printf "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"'

# ---- The routes ----

odd_text=$'"quotes" \\back\\slash\\ \\n \\u0041 tab\there, two\nlines, \x01\x1f\x7f, é 世界 👩‍🚀 & * $HOME `id` %s'

chat_prints_exactly() {
  expect "This is the stand-in, not a model. You have sent 1 prompt so far; the first was: $odd_text" "$(chat exact "$odd_text")"
  expect "user|$odd_text" "$(rows_of exact | head -n 2)"
}

chat_streams() {
  # shellcheck disable=SC2016  # GO_ON is expanded by the canned curl
  canned_curl "$stream_head"'
    printf "data: {\"message\":{\"content\":\"first \"}}\n\n"
    until [[ -e $GO_ON ]]; do sleep 0.02; done
    printf "data: {\"message\":{\"content\":\"last\"}}\n\n"'
  export GO_ON=$work/go-on
  chat stream hello >"$work/stream" &
  eventually grep -q 'first ' "$work/stream"
  touch "$GO_ON"
  wait $!
  expect 'first last' "$(<"$work/stream")"
}

chat_decodes() {
  canned_curl "printf 'HTTP/1.1 100 Continue\r\n\r\n'; $stream_head"'
    printf ": ping\n\n"
    cat <<"END"
data: {"model":"content","message":{"role":"x","thinking":"no","content":"\u00e9 \u20ac \ud83d\ude00 \\u0041\n\"\/\""},"context":[1,2],"done":false}

data: { "done": false, "message" : {"content" : "\u0009end", "role":"x"} }

data: {"message":{"role":"assistant","content":""},"done":true}
END'
  expect $'é € 😀 \\u0041\n"/"\tend' "$(chat decodes hello)"
}

chat_says_error_events() {
  canned_curl "$stream_head"'
    printf "data: {\"message\":{\"content\":\"half a\"}}\n\n"
    printf "event: error\ndata: { \"error\": \"Ollama went \\\\\"away\\\\\"\" }\n\n"
    printf "data: {\"message\":{\"content\":\"more\"}}\n\n"'
  fails chat errors hello >"$work/text"
  expect $'half a\nmore' "$(<"$work/text")"
  expect 'llmchat.sh: Ollama went "away"' "$error"
}

chat_says_refusals() {
  fails chat "$(printf 'a%.0s' {1..65})" hello
  expect_part 'appID' "$error"
  expect_part '(HTTP status 422)' "$error"
}

certificate_is_checked() {
  fails "$scripts/top.sh" --url "$url"
  expect_part 'self-signed' "$error"
  expect_part '-k' "$error"
}

unreachable_is_said() {
  fails "$scripts/llmchat.sh" --url http://127.0.0.1:1 a hello
  expect_part 'llmchat.sh: Failed to connect' "$error"
}

url_from_environment() {
  expect 'EECS Reactive chatterd' "$(CHATTERD_URL=$url/ "$scripts/top.sh" -k)"
}

history_goes_along() {
  chat history 'first prompt' >/dev/null
  expect_part '2 prompts so far; the first was: first prompt' "$(chat --system 'Be brief.' history second)"
  expect_part $'system|Be brief.\nuser|second' "$(rows_of history)"
}

prep_replaces() {
  chat prep 'forget me' >/dev/null
  expect '' "$(route llmprep prep system 'Answer in "one" sentence.' user 'remember me')"
  expect $'system|Answer in "one" sentence.\nuser|remember me' "$(rows_of prep)"
  expect_part 'the first was: remember me' "$(chat prep hello)"
  route llmprep prep
  expect '' "$(rows_of prep)"
}

prompt_prints() {
  expect "This is the stand-in, not a model. The prompt was: $odd_text" "$(route llmprompt --model stand-in "$odd_text")"
}

chatts_go_round() {
  route postchatt alice 'one ] [two] "three" ],["'
  route postchatt 'b\ob' $'last \\" words\\'
  local printed
  printed=$(route getchatts | sed 's/^[0-9T:.-]*Z //')
  expect $'alice: one ] [two] "three" ],["\nb\\ob: last \\" words\\' "$printed"
}

each_has_help() {
  local name help
  for name in llmchat llmprep llmprompt getchatts postchatt top make-cert setup-db quickstart test bench check lint-openapi \
    scaling/ollamas scaling/nginx scaling/standby scaling/pgbouncer; do
    help=$("$scripts/$name.sh" --help) # check.sh's own comment is its help
    [[ -n $help ]] || { say "$name.sh --help says nothing" && return 1; }
    if "$scripts/$name.sh" --no-such-option </dev/null >/dev/null 2>&1; then say "$name.sh takes any option" && return 1; fi
  done
}

# ---- make-cert.sh ----

certificate_names() {
  cd "$work"
  "$scripts/make-cert.sh" --out-dir certificate example.org '*.example.org' 192.0.2.7 ::1 '[2001:db8::7]'
  local text
  text=$(openssl x509 -in certificate/chatterd.crt -noout -text)
  expect_part 'DNS:example.org, DNS:*.example.org, IP Address:192.0.2.7, IP Address:0:0:0:0:0:0:0:1, IP Address:2001:DB8:0:0:0:0:0:7' "$text"
  expect_part 'prime256v1' "$text"
  openssl verify -CAfile certificate/chatterd.crt -verify_hostname www.example.org certificate/chatterd.crt
  openssl verify -CAfile certificate/chatterd.crt -verify_ip 192.0.2.7 certificate/chatterd.crt
  openssl x509 -in certificate/chatterd.crt -noout -checkend $((824 * 86400))
  fails openssl x509 -in certificate/chatterd.crt -noout -checkend $((826 * 86400))
  expect 600 "$(stat -c %a certificate/chatterd.key)"
}

certificate_is_kept() {
  cd "$work"
  "$scripts/make-cert.sh" --cert kept.crt --key kept.key localhost
  local before
  before=$(cat kept.crt kept.key)
  fails "$scripts/make-cert.sh" --cert kept.crt --key kept.key localhost
  expect_part 'kept.crt is already there' "$error"
  expect "$before" "$(cat kept.crt kept.key)"
  "$scripts/make-cert.sh" --force --cert kept.crt --key kept.key localhost
  [[ $before != "$(cat kept.crt kept.key)" ]]
}

certificate_names_are_checked() {
  local name
  for name in 300.1.1.1 zz::1 'a b' 'a,IP:1.2.3.4' /CN=x ''; do
    fails "$scripts/make-cert.sh" --out-dir "$work/none" "$name"
  done
  [[ ! -e $work/none/chatterd.crt ]]
}

certificate_serves() {
  expect '"EECS Reactive chatterd"' "$(curl -q -sS --cacert "$work/chatterd.crt" "https://localhost:${url##*:}/")"
}

# ---- setup-db.sh ----

setup_twice() {
  local name=${database}_twice first second
  first=$("$scripts/setup-db.sh" --database "$name" --role "$name")
  [[ $first =~ password=([0-9a-f]{32})\" ]]
  PGUSER=$name PGPASSWORD=${BASH_REMATCH[1]} psql -qAt --dbname="$name" \
    --command="insert into chatts (name, message, id) values ('a', 'b', gen_random_uuid())"
  second=$("$scripts/setup-db.sh" --database "$name" --role "$name")
  expect_part 'left as it is' "$second"
  expect_part '#CHATTERD_DB="host=127.0.0.1 ' "$(tail -n 1 <<<"$second")" # appended, it must not replace the first
  expect "$name|1" "$(psql -qAt --dbname="$name" --command="select tableowner, (select count(*) from chatts) from pg_tables where tablename = 'chatts'")"
}

setup_takes_over() {
  local name=${database}_made_by_hand
  psql -q --command="create database $name"
  psql -q --dbname="$name" --command="create table chatts (name text, message text, id uuid, time timestamptz default now(), appid varchar(64));
    insert into chatts values ('a', 'b', gen_random_uuid())"
  CHATTER_PASSWORD=$'it\'s "odd" \\' "$scripts/setup-db.sh" --database "$name" --role "$name"
  expect "$name|1" "$(psql -qAt --dbname="$name" --command="select tableowner, (select count(seq) from chatts) from pg_tables where tablename = 'chatts'")"
  PGUSER=$name PGPASSWORD=$'it\'s "odd" \\' psql -qAt --dbname="$name" --command='alter table chatts add column mine int'
}

setup_says_unreachable() {
  fails env PGPORT=1 "$scripts/setup-db.sh" 2>&1
  expect_part 'pg_lsclusters' "$error"
}

# ---- quickstart.sh ----

# A copy of the checkout as it is now, built files with it, so that nothing is built again.
copy_checkout() {
  mkdir -p "$1"
  tar -C "$checkout" --exclude=./.git --exclude=./quickstart.d --exclude=unit_tests --exclude=contract_tests \
    --exclude=./build/asan --exclude=./build/tsan -cf - . | tar -C "$1" -xf -
}
# Without an Ollama, whether this machine has one or not.
quickstart_environment=(env -u CHATTERD_BIN -u CHATTERD_TEST_DB CHATTERD_OLLAMA=http://127.0.0.1:1)
quickstart() { "${quickstart_environment[@]}" "$1/scripts/quickstart.sh" "${@:2}" 2>&1; }
# Sets $launched when it serves, and $script to the process id of the script itself. Ends with the test.
quickstart_serving() {
  launch TERM "$1.log" "${quickstart_environment[@]}" "$1/scripts/quickstart.sh"
  eventually grep -q 'until ^C' "$1.log"
  script=$(pgrep -f "^bash $1/scripts/quickstart.sh")
}
nothing_of() { ! pgrep -f "$1/" >/dev/null; }

quickstart_shows() {
  local dir=$1 text
  text=$(quickstart "$dir" --once) || { say "$text" && return 1; }
  expect_part 'You have sent 1 prompt so far; the first was: Why is the sky blue?' "$text"
  expect_part 'You have sent 2 prompts so far; the first was: Why is the sky blue?' "$text"
  expect_part ' user      | What was my first question?' "$text"
  # Other users can't read a password.
  expect '' "$(grep -rlE 'password=|^127' "$dir/quickstart.d" | xargs -r stat --format='%a %n' | grep -v '^600 ' || true)"
  # What it started is gone, and so is the cluster's folder.
  nothing_of "$dir"
  [[ ! -e $(<"$dir/quickstart.d/postgres.folder") ]]
}

quickstart_twice() {
  copy_checkout "$work/once"
  quickstart_shows "$work/once"
  quickstart_shows "$work/once"
}

quickstart_after_kill() {
  copy_checkout "$work/killed"
  quickstart_serving "$work/killed"
  kill -9 "$script"
  quickstart_shows "$work/killed"
}

quickstart_stops() {
  copy_checkout "$work/stopped"
  quickstart_serving "$work/stopped"
  local served status=0
  served=$(grep -o 'https://127.0.0.1:[0-9]*' "$work/stopped.log" | head -n 1)
  expect 'EECS Reactive chatterd' "$("$scripts/top.sh" -k --url "$served")"
  kill -TERM "$script"
  wait "$launched" || status=$?
  expect 143 "$status"
  nothing_of "$work/stopped"
}

quickstart_beside_another() {
  copy_checkout "$work/left"
  copy_checkout "$work/right"
  quickstart_shows "$work/left" >"$work/left.log" 2>&1 &
  quickstart_shows "$work/right"
  wait $! || { cat "$work/left.log" && return 1; }
}

quickstart_uses_database() {
  copy_checkout "$work/own-db"
  psql -q --command="create database ${database}_given"
  local text
  text=$(CHATTERD_DB="host=127.0.0.1 port=$PGPORT user=postgres dbname=${database}_given" quickstart "$work/own-db" --once)
  expect_part 'the one that CHATTERD_DB names' "$text"
  expect 4 "$(psql -qAt --dbname="${database}_given" --command='select count(*) from chatts')"
  [[ ! -e $work/own-db/quickstart.d/postgres.folder ]]
}

# ---- bench.sh ----

# bench FOLDER ARGUMENT...: small, with its files in that folder.
bench() {
  mkdir "$1"
  TMPDIR=$1 "$scripts/bench.sh" --quick --rounds 1 "${@:2}" 2>"$1.log" || { cat "$1.log" && return 1; }
}

bench_measures() {
  local table shape
  table=$(bench "$work/bench") || { say "$table" && return 1; }
  for shape in one burst32 paced200 paced1000 short getchatts postchatt history table mixed handshakes idle; do
    grep -qE "^\| $shape +\|.*failed +\| +0 \|$" <<<"$table" || { say "$shape:" "$table" && return 1; }
  done
  # Each row has a number, and what it started is gone.
  expect '' "$(sed '1,/^|---/d' <<<"$table" | grep -vE '^\| [a-z0-9]+ +\| [^|]+ \| +[0-9]+(\.[0-9]+)? \|$' || true)"
  nothing_of "$work/bench"
  expect '' "$(ls "$work/bench")"
}

bench_compares() {
  local table
  table=$(bench "$work/compare" --against "${CHATTERD_BIN:-$checkout/chatterd}" short) || { say "$table" && return 1; }
  grep -qE '^\| shape +\| what +\| +A \| +B \| +A/B \|$' <<<"$table"
  grep -qE '^\| short +\| streams per s +\| +[0-9.]+ \| +[0-9.]+ \| +[0-9.]+ \|$' <<<"$table"
}

bench_refuses() {
  local arguments status
  for arguments in --no-such-option --rounds '--rounds 0' no-such-shape '--against /dev/null' '--against /bin/true --peer x' \
    '--peer https://127.0.0.1:1' '--peer-reset true' '--ollama-port x'; do
    status=0
    # shellcheck disable=SC2086  # several arguments
    "$scripts/bench.sh" $arguments >"$work/refused" 2>&1 || status=$?
    expect "$arguments 2 1" "$arguments $status $(wc -l <"$work/refused")"
    expect_part "${arguments%% *}" "$(<"$work/refused")"
  done
}

# ---- scaling/ ----

scaling_shows() {
  local folder=$work/scaling-$1 output
  chmod 711 "$work" # for the users that PostgreSQL and PgBouncer run as
  mkdir -m 711 "$folder"
  output=$(TMPDIR=$folder "$scripts/scaling/$1.sh")
  say "$output"
  expect 'All of it held.' "$(tail -n 1 <<<"$output")"
  rmdir "$folder" # it has removed what it made
  eventually nothing_of "$folder"
}
shows_ollamas() { scaling_shows ollamas; }
shows_nginx() { scaling_shows nginx; }
shows_standby() { scaling_shows standby; }
shows_pgbouncer() { scaling_shows pgbouncer; }

scaling_fails() {
  fails bash -c ". '$scripts/scaling/lib.sh'; work=$work/none; holds 'so it is' true; holds 'the database is clean' false; say 'All of it held.'"
}

# ---- check.sh ----

check_finds() {
  mkdir -p "$work/tree/scripts" "$work/tree/tests" "$work/tree/.ci"
  cp "$scripts/check.sh" "$work/tree/scripts/"
  cd "$work/tree"
  printf '#include "db.hpp"\n' >text.cpp
  printf '#include "db_schema.hpp"\n' >db.hpp
  printf '#include "db.hpp"\n#include <libpq-fe.h>\n' >db_schema.hpp
  printf '#include <libpq-fe.h>\n#include <httplib.h>\n' >relay.cpp
  printf '' >novel.cpp
  # shellcheck disable=SC2016  # this is the fault to be found
  printf '#!/usr/bin/env bash\necho $1\n' >.ci/run
  local found status=0
  found=$(scripts/check.sh) || status=$?
  expect 1 "$status"
  expect_part 'text.cpp:1: includes db.hpp' "$found"
  expect_part 'headers that include each other: db.hpp db_schema.hpp' "$found"
  expect_part 'relay.cpp:1: includes libpq-fe.h' "$found"
  expect_part 'relay.cpp:2: includes httplib.h' "$found"
  expect_part 'novel.cpp: not in the list' "$found"
  expect_part 'SC2086' "$found"
  expect 6 "$(wc -l <<<"$found")"
}

# ---- test.sh ----

# What run_script_tests counts for a suite that prints TEXT and ends with STATUS.
counted() { # counted TEXT STATUS
  mkdir -p "$work/suite"
  printf '#!/bin/sh\nprintf "%s"\nexit %s\n' "$1" "$2" >"$work/suite/suite.sh"
  chmod +x "$work/suite/suite.sh"
  bash -euo pipefail -c ". '$scripts/lib.sh'; . '$scripts/test-lib.sh'; work=$work/suite checkout=$work/suite
    run_script_tests Suite suite.sh '' >&2; say \"\$passed passed, \$failed failed\""
}
suites_are_counted() {
  expect '2 passed, 0 failed' "$(counted 'ok: a\nok: b\n' 0)"
  expect '1 passed, 1 failed' "$(counted 'ok: a\nFAILED: b\n' 1)"
  expect '1 passed, 1 failed' "$(counted 'ok: a\n' 1)"
  expect '0 passed, 1 failed' "$(counted '' 3)"
}

# ---- Watching ----

metrics_of_a_busy_one() {
  local admin
  admin=$(grep -o 'event=admin_listening url=http[^ ]*' "$work/chatterd.log" | sed 's/.*url=//')
  "$scripts/llmchat.sh" -k --url "$url" --model stand-in "watched-$$" 'Hello' >/dev/null
  curl -sk "$url/no-such-path" >/dev/null
  curl -sS --fail "$admin/metrics"
}

promtool_accepts_metrics() {
  need_promtool
  metrics_of_a_busy_one >"$work/metrics"
  local complaints
  complaints=$("$promtool" check metrics <"$work/metrics" 2>&1) || { say "$complaints" && return 1; }
  expect '' "$complaints"
}

metrics_are_there() {
  metrics_of_a_busy_one | sed '/^#/d; s/[{ ].*//' | sort -u >"$work/there"
  local file named missing
  sed -n '/^## Reading the metrics/,/^## Alerts/p' "$checkout/docs/operations.md" >"$work/metrics.md"
  for file in "$scripts/alerts.yml" "$scripts/grafana-dashboard.json" "$work/metrics.md"; do
    named=$(grep -oE '\b(chatterd|process)_[a-z_]+' "$file" | sort -u)
    (($(wc -l <<<"$named") > 10)) || { say "$file names hardly a metric" && return 1; }
    # A histogram goes by its name without _bucket, _sum or _count too.
    missing=$(grep -vxFf <(cat "$work/there" && sed -n 's/_bucket$//p' "$work/there") <<<"$named") || true
    [[ -z $missing ]] || { say "$file names what chatterd has not: $missing" && return 1; }
  done
}

alerts_fire() {
  need_promtool
  "$promtool" check rules "$scripts/alerts.yml"
  "$promtool" test rules "$checkout/tests/alerts_test.yml"
}

alerts_are_explained() {
  local alert alerts
  alerts=$(sed -n 's/^ *- alert: //p' "$scripts/alerts.yml")
  [[ -n $alerts ]]
  while read -r alert; do
    grep -q "^| \`$alert\` |" "$checkout/docs/operations.md" || { say "docs/operations.md does not explain $alert" && return 1; }
    grep -q "alertname: $alert\$" "$checkout/tests/alerts_test.yml" || { say "tests/alerts_test.yml does not try $alert" && return 1; }
  done <<<"$alerts"
}

start_programs() {
  "$scripts/setup-db.sh" --database "$database" --role "$database" >"$work/setup.log"
  "$scripts/make-cert.sh" --out-dir "$work" localhost 127.0.0.1 >/dev/null
  launch TERM "$work/stand-in.log" "$checkout/build/release/ollama_stand_in" --token-ms 1
  stand_in_pid=$launched
  local ollama
  ollama=$(address_in "$work/stand-in.log" "$stand_in_pid") || die 'the stand-in did not start'
  launch TERM "$work/chatterd.log" env -u CHATTERD_TEST_DB -u CHATTERD_BIN "${CHATTERD_BIN:-$checkout/chatterd}" \
    --host 127.0.0.1 --port 0 --admin 127.0.0.1:0 --cert "$work/chatterd.crt" --key "$work/chatterd.key" --state-dir "$work/state" --ollama "$ollama" \
    --db "host=127.0.0.1 port=$PGPORT user=$database dbname=$database $(grep -o 'password=[0-9a-f]*' "$work/setup.log")"
  chatterd_pid=$launched
  url=$(address_in "$work/chatterd.log" "$chatterd_pid") || { cat "$work/chatterd.log" && die 'chatterd did not start'; }
}

start_programs
check 'llmchat.sh prints the reply exactly, whatever the prompt holds' chat_prints_exactly
check 'llmchat.sh prints each token as it comes' chat_streams
check 'llmchat.sh prints message.content only and decodes its escapes' chat_decodes
check 'llmchat.sh says error events on standard error, prints the rest and exits with 1' chat_says_error_events
check 'llmchat.sh says the sentence of a refused request and exits with 1' chat_says_refusals
check 'llmchat.sh says that nothing listens at the URL' unreachable_is_said
check 'llmchat.sh continues a conversation, --system adds a message' history_goes_along
check 'llmprep.sh replaces a conversation by messages, or by none' prep_replaces
check 'llmprompt.sh prints the reply exactly' prompt_prints
check 'postchatt.sh and getchatts.sh carry brackets, quotes and backslashes' chatts_go_round
check 'Without -k a self-signed certificate is refused, with a hint' certificate_is_checked
check 'CHATTERD_URL is the default of --url' url_from_environment
check 'Every script explains itself with --help and refuses unknown options' each_has_help
check 'make-cert.sh tells names from addresses, in a P-256 certificate for at most 825 days' certificate_names
check 'make-cert.sh replaces nothing without --force' certificate_is_kept
check 'make-cert.sh refuses what is neither a name nor an address' certificate_names_are_checked
check 'curl trusts chatterd with the certificate of make-cert.sh' certificate_serves
check 'setup-db.sh twice keeps rows and password, and the role owns the table' setup_twice
check 'setup-db.sh takes over a table made by hand' setup_takes_over
check 'setup-db.sh says what to do when PostgreSQL does not answer' setup_says_unreachable
check 'promtool finds nothing to say about /metrics of a chatterd at work' promtool_accepts_metrics
check 'every metric that dashboard, alert rules and docs name is one that chatterd has' metrics_are_there
check 'promtool accepts the alert rules, and they fire when they should' alerts_fire
check 'docs/operations.md explains every alert' alerts_are_explained
check_beside 'quickstart.sh --once works twice in a row and leaves no process' quickstart_twice
check_beside 'quickstart.sh works after the one before was killed' quickstart_after_kill
check_beside 'quickstart.sh serves until it is told to stop, and stops all it started' quickstart_stops
check_beside 'quickstart.sh works beside one of another checkout' quickstart_beside_another
check_beside 'quickstart.sh uses the database that CHATTERD_DB names' quickstart_uses_database
check_beside 'bench.sh measures every shape without a failure and leaves nothing' bench_measures
check_beside 'bench.sh compares two builds of chatterd' bench_compares
check 'bench.sh refuses wrong arguments with status 2 and one line' bench_refuses
check 'check.sh finds includes that point the wrong way and what shellcheck finds' check_finds
check 'test.sh counts a suite of scripts that died as a failure' suites_are_counted
check 'scaling/: a script ends with status 1 at the first thing that is not as it says' scaling_fails
check_asked 'scaling/ollamas.sh shows what it says, and leaves nothing' shows_ollamas
check_asked 'scaling/nginx.sh shows what it says, and leaves nothing' shows_nginx
check_asked 'scaling/standby.sh shows what it says, and leaves nothing' shows_standby
check_asked 'scaling/pgbouncer.sh shows what it says, and leaves nothing' shows_pgbouncer
check_all_beside
no_failures
