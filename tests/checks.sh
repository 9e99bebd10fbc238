# shellcheck shell=bash
# How the tests of scripts run and are counted; sourced. It needs $work, a folder, and $pattern, which is empty or
# what the names of the tests to run match. Each prints a line "ok: NAME" or "FAILED: NAME".

: "${work:?}"
failures=0 under_way=()

wanted() {
  # shellcheck disable=SC2053  # a pattern it is
  [[ -z $pattern || $1 == $pattern ]]
}
# run NAME FUNCTION: the function fails at its first command that fails; its output is shown then.
run() {
  local status=0 output=$work/output.$BASHPID
  set +e # instead of `|| status=$?`, which would switch -e off within the function
  (set -e && "$2") >"$output" 2>&1 </dev/null
  status=$?
  set -e
  if ((status == 0)); then
    printf 'ok: %s\n' "$1"
  else
    sed 's/^/  /' "$output"
    printf 'FAILED: %s\n' "$1"
  fi
  return "$status"
}
check() {
  wanted "$1" || return 0
  run "$@" & # and waited for, since `run ... ||` would make it a condition
  wait $! || failures=$((failures + 1))
}
# For tests that take half a minute and more: only when asked for, as by scripts/test.sh --filter 'scaling*'.
check_asked() { [[ -z $pattern ]] || check "$@"; }
# For tests that mostly wait: they run side by side until check_all_beside.
check_beside() {
  wanted "$1" || return 0
  run "$@" >"$work/beside.${#under_way[@]}" &
  under_way+=($!)
}
check_all_beside() {
  local i
  for i in "${!under_way[@]}"; do
    wait "${under_way[i]}" || failures=$((failures + 1))
    cat "$work/beside.$i"
  done
}

expect() { # expect WANTED GOT
  [[ $1 == "$2" ]] && return 0
  printf 'wanted: %q\ngot:    %q\n' "$1" "$2"
  return 1
}
expect_part() { # expect_part PART TEXT
  [[ $2 == *"$1"* ]] && return 0
  printf 'wanted: ...%q...\ngot:    %q\n' "$1" "$2"
  return 1
}
# Waits up to 120 s for a condition: a quickstart on a busy machine takes its time.
eventually() {
  local i
  for ((i = 0; i < 2400; i++)); do
    if "$@" 2>/dev/null; then return 0; fi
    sleep 0.05
  done
  printf 'waited in vain for: %s\n' "$*"
  return 1
}

no_failures() { ((failures == 0)); }
