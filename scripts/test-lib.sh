# shellcheck shell=bash
# What test.sh and faults.sh share: a folder and a PostgreSQL of their own, the sanitizers' options, and how tests
# are counted. bench.sh uses the folder only. Sourced, after lib.sh.

# ---- Beginning and end ----

# Everything is in one folder that is gone at the end, whatever the end is.
work='' children=()
clean_up() {
  trap '' INT TERM HUP # once is enough
  ((${#children[@]} == 0)) || kill "${children[@]}" 2>/dev/null || true
  private_db_stop
  [[ -z $work ]] || rm -rf "$work"
}

make_work_folder() {
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
  # Settings of chatterd or libpq in the caller's environment are not the tests' business.
  unset "${!PG@}" "${!CHATTERD_@}"
  work=$(mktemp -d "${TMPDIR:-/tmp}/chatterd-test.XXXXXX")
  chmod 711 "$work" # for the user that PostgreSQL runs as
}

# The tests make roles without passwords, with no rights but on databases that are gone in minutes. The
# superuser does need one.
start_test_database() {
  # shellcheck disable=SC2034  # private_db_start reads it
  db_auth=trust
  private_db_start "$work" max_connections=200 fsync=off
  # shellcheck disable=SC2154  # private_db_start sets them
  export CHATTERD_TEST_DB="host=127.0.0.1 port=$db_port user=postgres dbname=postgres password=$db_password"
  export PGPASSWORD=$db_password
  export STATE_DIRECTORY=$work/state # where chatterd keeps waiting replies, instead of below /var/lib or $HOME
}

# ---- Variants ----

# Reports of the sanitizers end the program with a status that no test gives, and so are counted.
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:exitcode=99
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:exitcode=99
# TSan sees only half of what the libraries do that are not built with it, and takes their one-time
# initialisations for races. A second SIGTERM ends chatterd with its threads at work, on purpose.
export TSAN_OPTIONS=halt_on_error=0:exitcode=99:second_deadlock_stack=1:ignore_noninstrumented_modules=1:report_thread_leaks=0

# The chatterd of a variant.
binary_of() {
  # shellcheck disable=SC2154  # lib.sh sets it
  if [[ $1 == release ]]; then printf '%s' "$checkout/chatterd"; else printf '%s' "$checkout/build/$1/chatterd"; fi
}

# Sets wrapper to what a variant's test programs are run by.
choose_wrapper() {
  wrapper=()
  # g++ 12's ThreadSanitizer does not know the address layouts of recent kernels.
  # shellcheck disable=SC2034  # the caller reads it
  if [[ $1 == tsan ]] && setarch -R true 2>/dev/null; then wrapper=(setarch -R); fi
}

# ---- What the test programs print ----

program_limit_s=900 # a test program that runs longer hangs

passed=0 failed=0
count() {
  passed=$((passed + $1)) failed=$((failed + $2))
}

program_failed() {
  say "FAILED: $1 ended with status $2$([[ $2 != 124 ]] || printf ' (it ran longer than %s s)' "$program_limit_s")"
  count 0 1
}

# run_script_tests NAME SCRIPT PATTERN: one that prints a line "ok: NAME" or "FAILED: NAME" for each test.
run_script_tests() {
  local status=0
  say "$1"
  timeout --kill-after=10 "$program_limit_s" "$checkout/$2" "$3" </dev/null 2>&1 |
    tee "$work/output" | grep -v '^ok: ' || status=${PIPESTATUS[0]} # grep's own is 1 where all went well
  count "$(grep -c '^ok: ' "$work/output" || true)" "$(grep -c '^FAILED: ' "$work/output" || true)"
  ((status == 0)) || grep -q '^FAILED: ' "$work/output" || program_failed "$2" "$status"
}

# The number of test cases in the closing lines of Catch2 2 or 3, as "PASSED FAILED"; fails if there are none.
#   All tests passed (20 assertions in 4 test cases)
#   test cases: 10 | 7 passed | 2 failed | 1 skipped
catch_counts() {
  local line passed=0 failed=0
  line=$(grep -E '^(All tests passed|test cases:|No tests ran|No test cases matched)' "$1" | tail -n 1) || return 1
  if [[ $line =~ \ in\ ([0-9]+)\ test\ case ]]; then passed=${BASH_REMATCH[1]}; fi
  if [[ $line =~ ([0-9]+)\ passed ]]; then passed=${BASH_REMATCH[1]}; fi
  if [[ $line =~ ([0-9]+)\ failed\ *($|\|) ]]; then failed=${BASH_REMATCH[1]}; fi
  printf '%s %s\n' "$passed" "$failed"
}
