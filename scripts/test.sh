#!/usr/bin/env bash
# All tests of this checkout; see --help.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/test-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/test-lib.sh"

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

# ---- What the test programs print ----

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

# The short cases of the catalogue of faults, by its own script.
run_short_faults() {
  [[ -z $filter ]] || return 0
  local jobs=4
  [[ $1 != tsan ]] || jobs=2 # under TSan more of them get in the way of each other's deadlines
  say "Short faults ($1)"
  "$checkout/scripts/faults.sh" --variant "$1" --jobs "$jobs" '[short]' </dev/null >"$work/output" 2>&1 || true
  if [[ $(tail -n 1 "$work/output") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
    count "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
    ((BASH_REMATCH[2] == 0)) || sed '$d' "$work/output"
  else
    cat "$work/output"
    program_failed scripts/faults.sh '?'
  fi
}

run_check() {
  [[ -z $filter ]] || return 0
  say 'Includes, options, shellcheck'
  if "$checkout/scripts/check.sh"; then count 1 0; else count 0 1; fi
}

# ---- Variants ----

build() {
  say "Building ($1)"
  quietly "$work/build.log" make -C "$checkout" -j"$(nproc)" tests stand-in
  [[ $1 == release ]] || quietly "$work/build.log" make -C "$checkout" -j"$(nproc)" "$1"
}

run_variant() {
  local variant=$1
  build "$variant"
  CHATTERD_BIN=$(binary_of "$variant")
  export CHATTERD_BIN
  choose_wrapper "$variant"
  run_catch "Unit tests ($variant)" "$checkout/build/$variant/unit_tests"
  run_catch "Contract tests ($variant)" "$checkout/build/release/contract_tests"
  run_short_faults "$variant"
  [[ $variant != release ]] || run_check
  [[ $variant != release ]] || run_script_tests Scripts tests/scripts_test.sh "$filter"
  [[ $variant != release ]] || run_script_tests Installation tests/package_test.sh "$filter"
  [[ $variant != release ]] || run_script_tests 'The API document' tests/openapi/openapi_test.py "$filter"
}

need_packages "${build_packages[@]}" catch2 shellcheck postgresql-server strace systemd python3 python3-yaml python3-jsonschema
make_work_folder
start_test_database
cd "$checkout"
for variant in "${variants[@]}"; do run_variant "$variant"; done
say "$passed passed, $failed failed"
((failed == 0))
