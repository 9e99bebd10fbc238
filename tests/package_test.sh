#!/usr/bin/env bash
# Tests of packaging/ and `make install` as docs/operations.md has them, called by scripts/test.sh: into folders
# of their own, without root. scripts/package-test.sh does the same with real machines' root folders.
#   tests/package_test.sh [PATTERN]     only tests whose name matches, such as '*reload*'
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

pattern=${1:-}
work=$(mktemp -d "${TMPDIR:-/tmp}/package-test.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# shellcheck source=tests/checks.sh
. "$checkout/tests/checks.sh"

exposure_max=16 # in tenths, as systemd-analyze takes it

# make_in FOLDER TARGET [VARIABLE=VALUE...]
make_in() { make --silent --no-print-directory -C "$checkout" "${@:2}" DESTDIR="$1"; }
files_in() { (cd "$1" && find . ! -type d -printf '%m %P\n' | sort -k 2); }

# ---- make install ----

installs_all() {
  make_in "$work/all" install
  expect '640 etc/chatterd/chatterd.env
755 usr/local/bin/chatterd
755 usr/local/lib/chatterd/certbot-hook
755 usr/local/lib/chatterd/reload
644 usr/local/lib/chatterd/schema.sql
644 usr/local/lib/chatterd/scripts/lib.sh
755 usr/local/lib/chatterd/scripts/make-cert.sh
755 usr/local/lib/chatterd/scripts/setup-db.sh
644 usr/local/lib/systemd/system/chatterd.service
644 usr/local/lib/systemd/system/chatterd.socket
644 usr/local/lib/sysusers.d/chatterd.conf
644 usr/local/share/man/man8/chatterd.8' "$(files_in "$work/all")"
}

configuration_stays() {
  make_in "$work/stays" install
  printf 'CHATTERD_PORT=8443\n' >"$work/stays/etc/chatterd/chatterd.env"
  make_in "$work/stays" install
  expect CHATTERD_PORT=8443 "$(<"$work/stays/etc/chatterd/chatterd.env")"
  mkdir -p "$work/stays/var/lib/chatterd"
  : >"$work/stays/var/lib/chatterd/replies"
  make_in "$work/stays" uninstall
  expect $'640 etc/chatterd/chatterd.env\n644 var/lib/chatterd/replies' "$(files_in "$work/stays")"
  [[ ! -e $work/stays/usr/local/lib/chatterd ]]
}

# A folder that holds files of others, too.
uninstall_removes_its_own() {
  mkdir -p "$work/shared/usr/lib/scripts"
  : >"$work/shared/usr/lib/scripts/mine"
  make_in "$work/shared" install LIBDIR=/usr/lib
  make_in "$work/shared" uninstall LIBDIR=/usr/lib
  expect $'640 etc/chatterd/chatterd.env\n644 usr/lib/scripts/mine' "$(files_in "$work/shared")"
}

version_is_the_programs() {
  expect_part "make-deb $("$checkout/chatterd" --version | sed 's/^chatterd //')" "$(make -n -C "$checkout" deb)"
}

sysusers_makes_user() {
  make_in "$work/user" install PREFIX=/usr
  systemd-sysusers --root="$work/user" chatterd.conf
  expect_part ':/var/lib/chatterd:/usr/sbin/nologin' "$(grep '^chatterd:' "$work/user/etc/passwd")"
}

# The format is a shell's too, as far as these lines go.
accepts() { # accepts FILE
  expect_part 'ok    configuration' "$(
    set -a
    # shellcheck source=packaging/chatterd.env
    . "$1"
    "$checkout/chatterd" --check --http --ollama http://127.0.0.1:1 --db 'host=127.0.0.1 port=1' || true
  )"
}
configuration_is_right() {
  accepts "$checkout/packaging/chatterd.env"
  sed 's/^#\(CHATTERD_\)/\1/' "$checkout/packaging/chatterd.env" >"$work/every.env"
  (($(grep -c '^CHATTERD_' "$work/every.env") > 25))
  accepts "$work/every.env"
}

# ---- The units ----

# A root folder with chatterd and the targets that units hang on.
units_root() {
  local folder
  make_in "$1" install PREFIX=/usr
  for folder in /lib/systemd/system /usr/lib/systemd/system; do
    if [[ -e $folder/sysinit.target ]]; then cp "$folder"/*.target "$1/usr/lib/systemd/system/" && return 0; fi
  done
  die 'systemd has no targets here'
}

units_are_accepted() {
  units_root "$work/units"
  expect '' "$(systemd-analyze verify --man=no --root="$work/units" chatterd.service chatterd.socket 2>&1)"
  # It does look: without the program it complains.
  rm "$work/units/usr/bin/chatterd"
  expect_part 'chatterd is not executable' "$(systemd-analyze verify --man=no --root="$work/units" chatterd.service 2>&1 || true)"
}

unit_is_hardened() {
  units_root "$work/hardened"
  systemd-analyze security --no-pager --offline=true --threshold="$exposure_max" --root="$work/hardened" chatterd.service >"$work/security" ||
    { tail -n 3 "$work/security" && return 1; }
}

unit_fits_the_defaults() {
  local unit=$checkout/packaging/chatterd.service connections streams
  connections=$(sed -n 's/^  --max-connections.*(\([0-9]*\))$/\1/p' <("$checkout/chatterd" --help))
  streams=$(sed -n 's/^  --max-streams.*(\([0-9]*\))$/\1/p' <("$checkout/chatterd" --help))
  (($(sed -n 's/^LimitNOFILE=//p' "$unit") > connections + streams + 100))
  (($(sed -n 's/^TasksMax=//p' "$unit") > streams + 64 + 100))
}

# ---- reload, certbot-hook ----

# Has `reload` send its SIGHUP to a process of this test; "hup" in $work/NAME.log says that it came.
start_target() {
  # shellcheck disable=SC2016  # expanded there
  bash -c 'trap "echo hup" HUP; echo ready; while :; do sleep 0.05; done' >"$work/$1.log" 2>&1 &
  target=$!
  trap 'kill "$target"' EXIT # of the subshell that a test is
  eventually grep -q ready "$work/$1.log"
}
reload() { # reload NAME
  RUNTIME_DIRECTORY=$work/$1/run MAINPID=$target "$checkout/packaging/reload" "$work/$1/etc"
}
hups() { [[ $(grep -c hup "$work/$1.log") == "$2" ]]; }

reload_places_copies() {
  mkdir -p "$work/places/etc" "$work/places/run"
  start_target places
  printf 'crt 1\n' >"$work/places/etc/chatterd.crt"
  printf 'key 1\n' >"$work/places/etc/chatterd.key"
  reload places
  eventually hups places 1
  printf 'crt 2\n' >"$work/places/etc/chatterd.crt"
  printf 'key 2\n' >"$work/places/etc/chatterd.key"
  reload places
  eventually hups places 2
  expect $'400 chatterd.crt\n400 chatterd.key' "$(files_in "$work/places/run")"
  expect $'crt 2\nkey 2' "$(cat "$work/places/run/"*)"
  # One of them is missing: the pair in use stays, and everything else is still read anew.
  rm "$work/places/etc/chatterd.key"
  printf 'crt 3\n' >"$work/places/etc/chatterd.crt"
  expect_part 'not both there' "$(reload places 2>&1)"
  eventually hups places 3
  expect $'crt 2\nkey 2' "$(cat "$work/places/run/"*)"
}

reload_without_certificate() {
  mkdir -p "$work/plain/etc" "$work/plain/run"
  start_target plain
  reload plain
  eventually hups plain 1
  expect '' "$(ls "$work/plain/run")"
}

# Root must not write where a chatterd that was taken over has put a link.
reload_follows_no_link() {
  mkdir -p "$work/link/etc" "$work/link/run"
  start_target link
  printf 'crt\n' >"$work/link/etc/chatterd.crt"
  printf 'key\n' >"$work/link/etc/chatterd.key"
  printf 'mine\n' >"$work/link/precious"
  ln -s ../precious "$work/link/run/chatterd.key.new"
  ln -s ../precious "$work/link/run/chatterd.key"
  reload link
  expect mine "$(<"$work/link/precious")"
  expect key "$(cat "$work/link/run/chatterd.key")"
}

certbot_hook_copies() {
  mkdir -p "$work/hook/live" "$work/hook/etc" "$work/hook/bin"
  printf 'chain\n' >"$work/hook/live/fullchain.pem"
  printf 'private\n' >"$work/hook/live/privkey.pem"
  # shellcheck disable=SC2016  # expanded there
  printf '#!/bin/sh\necho "$@" >>"%s"\n' "$work/hook/called" >"$work/hook/bin/systemctl"
  chmod +x "$work/hook/bin/systemctl"
  PATH=$work/hook/bin:$PATH RENEWED_LINEAGE=$work/hook/live "$checkout/packaging/certbot-hook" "$work/hook/etc"
  expect $'644 chatterd.crt\n600 chatterd.key' "$(files_in "$work/hook/etc")"
  expect $'chain\nprivate' "$(cat "$work/hook/etc/"*)"
  expect 'reload chatterd' "$(tail -n 1 "$work/hook/called")"
}

check 'make install puts each file in its place, with its mode' installs_all
check 'make install never overwrites the configuration, make uninstall leaves it and the state' configuration_stays
check 'make uninstall removes its own files only' uninstall_removes_its_own
check 'The version of the package begins with what chatterd --version says' version_is_the_programs
check 'systemd-sysusers makes the user chatterd, who can not log in' sysusers_makes_user
check 'chatterd takes the environment file as it is, and with every default set in it' configuration_is_right
check 'systemd-analyze verify accepts the units' units_are_accepted
check 'systemd-analyze security rates the unit 1.6 or better' unit_is_hardened
check 'The limits of the unit are above those of the options' unit_fits_the_defaults
check 'Reload places copies of certificate and key that chatterd alone can read, and sends SIGHUP' reload_places_copies
check 'Reload without certificate and key only sends SIGHUP' reload_without_certificate
check 'Reload follows no link in a folder that is not its own' reload_follows_no_link
check 'The hook for certbot copies the certificate and reloads chatterd' certbot_hook_copies
no_failures
