#!/usr/bin/env bash
# Fuzzes chatterd's parsers; see --help.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

all_targets=(request ndjson sse options http1)

usage() {
  cat <<END
usage: scripts/fuzz.sh [--seconds N] [TARGET...]

Installs clang where it is missing, builds the fuzz targets with libFuzzer, AddressSanitizer and UBSan,
and runs them, two at a time. Prints one line per target; the exit status is 1 if one found anything. The
input that shows it is kept in build/fuzz/findings; build/fuzz/TARGET FILE runs it again.
  --seconds    for each target (default 600)
  TARGET       ${all_targets[*]} (default: all)
Each run begins with tests/fuzz/corpus/TARGET and with what earlier runs have left in build/fuzz/grown.
END
}

seconds=600 targets=()
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --seconds)
      seconds=${2:?--seconds needs a number}
      [[ $seconds =~ ^[1-9][0-9]*$ ]] || die "--seconds: '$seconds' is not a whole number above 0"
      shift
      ;;
    -*) die "unknown argument $1 (--help explains)" ;;
    *)
      [[ " ${all_targets[*]} " == *" $1 "* ]] || die "there is no target $1, but ${all_targets[*]}"
      targets+=("$1")
      ;;
  esac
  shift
done
((${#targets[@]})) || targets=("${all_targets[@]}")

# One input may take this long; the longest of the corpus takes a few milliseconds.
input_limit_s=10
input_bytes_max=4096
at_once=2 # each takes a core, and shows no more on a machine that has other work

out=$checkout/build/fuzz
declare -A running=() # the target of each process
failed=0
clean_up() {
  trap '' INT TERM HUP # once is enough
  local pid
  for pid in "${!running[@]}"; do stop_process "$pid"; done
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

find_clang() { command -v clang++ || command -v clang++-14; }

need_clang() {
  find_clang >/dev/null || need_packages clang
  clang=$(find_clang)
  # The sanitizers' and libFuzzer's own libraries are a package apart, named after clang's version.
  need_packages "${build_packages[@]}" "libclang-rt-$("$clang" -dumpversion | cut -d. -f1)-dev"
}

# A value of libFuzzer's final statistics in the log $1.
statistic() { sed -n "s/^stat::$2: *//p" "$1" | tail -n 1; }

start_target() {
  local target=$1
  mkdir -p "$out/grown/$target" "$out/findings"
  # The length grows faster than by default: a whole request is longer than most of libFuzzer's inputs.
  "$out/$target" -max_total_time="$seconds" -timeout="$input_limit_s" -max_len="$input_bytes_max" -len_control=20 \
    -print_final_stats=1 -artifact_prefix="$out/findings/$target-" "$out/grown/$target" "tests/fuzz/corpus/$target" \
    </dev/null >"$out/$target.log" 2>&1 &
  running[$!]=$target
}

# Waits for one target's end and says what came of it.
await_target() {
  local pid target status=0 log finding
  wait -n -p pid "${!running[@]}" || status=$?
  target=${running[$pid]}
  unset "running[$pid]"
  log=$out/$target.log
  if ((status == 0)); then
    say "$target: nothing found in $(statistic "$log" number_of_executed_units) runs, $(statistic "$log" average_exec_per_sec) a second"
    return 0
  fi
  failed=1
  finding=$(sed -n 's/^.*Test unit written to //p' "$log" | tail -n 1)
  say "$target: FOUND $(describe_finding "$log"): ${finding:-no input was kept} (log: $log)"
}

describe_finding() {
  # A property's own words, or what a sanitizer calls it.
  sed -n -e 's/^ *what(): *//p' -e 's/^.*runtime error: //p' -e 's/^.*ERROR: \([A-Za-z]*Sanitizer\|libFuzzer\): //p' "$1" |
    head -n 1 | cut -c 1-160 | grep . || printf 'something'
}

need_clang
cd "$checkout"
mkdir -p "$out"
say 'Building'
quietly "$out/build.log" make FUZZ_CXX="$clang" -j"$at_once" fuzz
say "Running ${targets[*]} for $seconds s each"
for target in "${targets[@]}"; do
  ((${#running[@]} < at_once)) || await_target
  start_target "$target"
done
while ((${#running[@]})); do await_target; done
((failed == 0))
