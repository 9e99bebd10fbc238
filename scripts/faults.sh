#!/usr/bin/env bash
# The catalogue of faults; see --help.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/test-lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/test-lib.sh"

usage() {
  cat <<'END'
usage: scripts/faults.sh [--list] [--variant release|asan|tsan] [--jobs N] [NAME-PATTERN...]

Hurts a running chatterd, PostgreSQL, Ollama and the clients in every way of the catalogue, and checks
after each that no message was lost and nothing is stuck. Without a pattern all cases run, which takes
under 15 minutes. Installs what is missing and builds; everything it starts is gone at the end. The last
line is "N passed, N failed"; the exit status is 0 only if none failed.
  --list        the names of the cases (all, or those that match), without running them
  --variant     release (default), or a chatterd under AddressSanitizer and UBSan (asan), or under
                ThreadSanitizer (tsan)
  --jobs N      run N cases at a time (1): most of them wait most of the time
  NAME-PATTERN  Catch2's patterns of names, such as '*kill -9*', or tags: '[short]', '[slow]',
                '[database]', '[spool]', '[ending]', '[clients]', '[connections]', '[ollama]', '[scarcity]',
                '[size]', '[mix]', '[shared]', '[checker]'. Several patterns run the cases that match any of them
END
}

list='' variant=release jobs=1 patterns=()
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --list) list=1 ;;
    --variant)
      case ${2:-} in
        release | asan | tsan) variant=$2 ;;
        *) die "--variant is one of release, asan, tsan" ;;
      esac
      shift
      ;;
    --jobs)
      [[ ${2:-} =~ ^[1-9][0-9]?$ ]] || die "--jobs needs a number from 1 to 99"
      jobs=$2
      shift
      ;;
    -*) die "unknown argument $1 (--help explains)" ;;
    *) patterns+=("$1") ;;
  esac
  shift
done

limit_s=1500 # a catalogue that runs longer hangs; sanitizers included

program=$checkout/build/release/fault_tests
binary=$(binary_of "$variant")

build() {
  quietly "$work/build.log" make -C "$checkout" -j"$(nproc)" chatterd build/release/fault_tests
  [[ $variant == release ]] ||
    quietly "$work/build.log" make -C "$checkout" -j"$(nproc)" VARIANT="$variant" "build/$variant/chatterd"
}

# Catch2 takes patterns of which a case has to match one as one argument with commas; a comma in a name
# is escaped. In a pattern of tags, such as '[short]~[database],[size]', commas are Catch2's own.
chosen() {
  local pattern escaped=()
  for pattern in "${patterns[@]}"; do
    [[ $pattern == *\[* ]] || pattern=${pattern//,/\\,}
    escaped+=("$pattern")
  done
  local IFS=,
  printf '%s' "${escaped[*]}"
}

list_cases() {
  local names
  # Its exit status is the number of names. Catch2 3 does not know the option, but lists names in full.
  names=$("$program" --list-test-names-only "$(chosen)" 2>/dev/null) || true
  [[ -n $names && $names != *'nrecognised token'* ]] ||
    names=$("$program" --list-tests --verbosity quiet "$(chosen)" 2>/dev/null) || true
  say "$names"
}

# run_share NUMBER: every jobs-th case, in a process of its own. Its output goes to $work/output.NUMBER, and
# to the terminal at once where it is the only one.
run_share() {
  local wrapper
  choose_wrapper "$variant"
  local IFS=,
  local share
  share=$(list_cases | sed 's/,/\\,/g' | awk -v n="$jobs" -v i="$1" 'NR % n == i' | paste -sd,)
  [[ -n $share ]] || return 0
  # With its share's shell, which clean_up ends, it ends too.
  setpriv --pdeathsig TERM timeout --kill-after=10 "$limit_s" "${wrapper[@]}" \
    "$program" --order lex --durations yes "$share" </dev/null 2>&1 |
    tee "$work/output.$1" | show
}

show() { if ((jobs == 1)); then cat; else cat >/dev/null; fi; }

run_cases() {
  local status=0 passed=0 failed=0 i counts share
  for ((i = 0; i < jobs; i++)); do
    run_share "$i" &
    children+=("$!")
  done
  for ((i = 0; i < jobs; i++)); do
    share=0
    wait "${children[i]}" || share=$?
    ((jobs == 1)) || cat "$work/output.$i" 2>/dev/null || true
    ((share != 124)) || say "FAILED: the catalogue ran longer than $limit_s s"
    [[ -e $work/output.$i ]] || continue
    counts=$(catch_counts "$work/output.$i") || counts='0 1'
    # Something that no case stands for, such as a crash of the test program.
    ((share == 0)) || [[ $counts != *' 0' ]] || counts="${counts% *} 1"
    passed=$((passed + ${counts% *})) failed=$((failed + ${counts#* }))
    ((share == 0)) || status=1
  done
  ((passed + failed > 0)) || say 'No case matches.'
  say "$passed passed, $failed failed"
  ((failed == 0 && status == 0 && passed > 0))
}

need_packages "${build_packages[@]}" catch2 postgresql-server strace
make_work_folder
build
if [[ -n $list ]]; then
  list_cases
  exit 0
fi
start_test_database
export CHATTERD_BIN=$binary
cd "$checkout"
run_cases
