#!/usr/bin/env bash
# All tests of this checkout; see --help.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'END'
usage: scripts/test.sh [--variant release|asan|tsan|all|ci] [--filter PATTERN]

Installs what is missing, builds, and runs the tests against a PostgreSQL of its own that is gone at the
end. The last line is "N passed, N failed"; the exit status is 0 only if none failed.
  --variant    release (default); asan and tsan run the unit and contract tests with chatterd under
               AddressSanitizer and UBSan, or ThreadSanitizer; ci is release and asan; all is all three
  --filter     only tests whose name matches: Catch2's patterns, such as '3.7*' or '*heartbeat*'
END
}

variants=(release) filter=''
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --variant)
      case ${2:-} in
        release | asan | tsan) variants=("$2") ;;
        all) variants=(release asan tsan) ;;
        ci) variants=(release asan) ;;
        *) die "--variant is one of release, asan, tsan, all, ci" ;;
      esac
      shift
      ;;
    --filter)
      filter=${2:?--filter needs a pattern}
      shift
      ;;
    *) die "unknown argument $1 (--help explains)" ;;
  esac
  shift
done

program_limit_s=900 # a test program that runs longer hangs

# Everything is in one folder that is gone at the end, whatever the end is.
work=''
clean_up() {
  trap '' INT TERM HUP # once is enough
  private_db_stop
  [[ -z $work ]] || rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

passed=0 failed=0
count() {
  passed=$((passed + $1)) failed=$((failed + $2))
}

# ---- What the test programs print ----

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

# run_catch NAME PROGRAM: shows what the program shows (failures and a summary) and counts.
run_catch() {
  local name=$1 program=$2 status=0 counts
  local arguments=(--order lex)
  [[ -z $filter ]] || arguments+=("$filter")
  say "$name"
  timeout --kill-after=10 "$program_limit_s" "${wrapper[@]}" "$program" "${arguments[@]}" </dev/null 2>&1 |
    tee "$work/output" || status=${PIPESTATUS[0]}
  if counts=$(catch_counts "$work/output"); then
    # shellcheck disable=SC2086  # two numbers
    count $counts
    # A leak found at the end, for example: every test passed and yet the program failed.
    [[ $counts != *' 0' || $status == 0 || $counts == '0 0' ]] || program_failed "$name" "$status"
  else
    program_failed "$name" "$status"
  fi
}

program_failed() {
  say "FAILED: $1 ended with status $2$([[ $2 != 124 ]] || printf ' (it ran longer than %s s)' "$program_limit_s")"
  count 0 1
}

# A script that prints a line "ok: NAME" or "FAILED: NAME" for each test.
run_script_tests() {
  local status=0
  say 'Scripts'
  timeout --kill-after=10 "$program_limit_s" "$checkout/tests/scripts_test.sh" "$filter" </dev/null 2>&1 |
    tee "$work/output" | grep -v '^ok: ' || true
  status=${PIPESTATUS[0]}
  count "$(grep -c '^ok: ' "$work/output" || true)" "$(grep -c '^FAILED: ' "$work/output" || true)"
  ((status == 0)) || grep -q '^FAILED: ' "$work/output" || program_failed 'tests/scripts_test.sh' "$status"
}

run_check() {
  [[ -z $filter ]] || return 0
  say 'Includes, options, shellcheck'
  if "$checkout/scripts/check.sh"; then count 1 0; else count 0 1; fi
}

# ---- Variants ----

# Reports of the sanitizers end the program with a status that no test gives, and so are counted.
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:exitcode=99
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:exitcode=99
# TSan sees only half of what the libraries do that are not built with it, and takes their one-time
# initialisations for races. A second SIGTERM ends chatterd with its threads at work, on purpose.
export TSAN_OPTIONS=halt_on_error=0:exitcode=99:second_deadlock_stack=1:ignore_noninstrumented_modules=1:report_thread_leaks=0

build() {
  say "Building ($1)"
  quietly "$work/build.log" make -C "$checkout" -j"$(nproc)" tests stand-in
  [[ $1 == release ]] || quietly "$work/build.log" make -C "$checkout" -j"$(nproc)" "$1"
}

run_variant() {
  local variant=$1
  build "$variant"
  CHATTERD_BIN=$checkout/chatterd
  [[ $variant == release ]] || CHATTERD_BIN=$checkout/build/$variant/chatterd
  export CHATTERD_BIN
  wrapper=()
  # g++ 12's ThreadSanitizer does not know the address layouts of recent kernels.
  if [[ $variant == tsan ]] && setarch -R true 2>/dev/null; then wrapper=(setarch -R); fi
  run_catch "Unit tests ($variant)" "$checkout/build/$variant/unit_tests"
  run_catch "Contract tests ($variant)" "$checkout/build/release/contract_tests"
  [[ $variant != release ]] || run_check
  [[ $variant != release ]] || run_script_tests
}

need_packages "${build_packages[@]}" catch2 shellcheck postgresql-server
# Settings of chatterd or libpq in the caller's environment are not the tests' business.
unset "${!PG@}" "${!CHATTERD_@}"
work=$(mktemp -d "${TMPDIR:-/tmp}/chatterd-test.XXXXXX")
chmod 711 "$work" # for the user that PostgreSQL runs as
# The tests make roles without passwords, with no rights but on databases that are gone in minutes. The
# superuser does need one.
db_auth=trust
private_db_start "$work" max_connections=200 fsync=off
export CHATTERD_TEST_DB="host=127.0.0.1 port=$db_port user=postgres dbname=postgres password=$db_password"
export PGPASSWORD=$db_password
export STATE_DIRECTORY=$work/state # where chatterd keeps waiting replies, instead of below /var/lib or $HOME
cd "$checkout"
for variant in "${variants[@]}"; do run_variant "$variant"; done
say "$passed passed, $failed failed"
((failed == 0))
