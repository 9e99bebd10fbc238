#!/usr/bin/env bash
# The Debian package on machines of its own; see --help.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'END'
usage: sudo scripts/package-test.sh [--release bookworm|trixie|noble] [--keep FOLDER]

Builds the package in a fresh root of that release (bookworm: Debian 12), made by debootstrap, with no more than
its build dependencies, has lintian look at it, and then boots another fresh root by systemd-nspawn, without a
network, where tests/package_machine.sh installs, runs, reloads, upgrades and purges it. The tests are those of this
checkout as it stands. It takes about 10 minutes and 2 GB below /var/tmp, and needs root. The last line is
"N passed, N failed".
  --keep FOLDER  the roots and their logs stay there; the next run with it takes the packages from it
END
}

release=bookworm keep=''
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --release | --keep)
      (($# > 1)) || die "$1 needs a value"
      case $1 in
        --release) release=$2 ;;
        --keep) keep=$2 ;;
      esac
      shift
      ;;
    *) die "unknown argument $1 (--help explains)" ;;
  esac
  shift
done
((EUID == 0)) || die 'only root can make and boot a root folder: sudo scripts/package-test.sh'
mirror=http://deb.debian.org/debian areas=main
sources="deb $mirror $release main"
case $release in
  bookworm | trixie)
    sources+=$'\n'"deb $mirror $release-updates main"$'\n'"deb http://deb.debian.org/debian-security $release-security main"
    ;;
  noble)
    mirror=http://archive.ubuntu.com/ubuntu areas=main,universe
    sources="deb $mirror noble main universe"$'\n'"deb $mirror noble-updates main universe"
    ;;
  *) die '--release is one of bookworm, trixie, noble' ;;
esac

passed=0 failed=0 machine=''
if [[ -n $keep ]]; then mkdir -p "$keep" && work=$(cd "$keep" && pwd); else work=$(mktemp -d /var/tmp/package-test.XXXXXX); fi
clean_up() {
  trap '' INT TERM HUP
  [[ -z $machine ]] || stop_process "$machine"
  [[ -n $keep ]] || rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# logged FILE FUNCTION: stops at the function's first command that fails, which `quietly` could not see.
logged() {
  local status
  set +e
  (set -e && "$2") </dev/null >"$1" 2>&1
  status=$?
  set -e
  ((status == 0)) && return 0
  tail -n 25 "$1" >&2
  die "$2 failed   (all of its output: $1)"
}

step() { # step NAME COMMAND...: counts as a test
  local name=$1
  shift
  if "$@" </dev/null >"$work/step.log" 2>&1; then
    passed=$((passed + 1)) && say "ok: $name"
  else
    tail -n 25 "$work/step.log"
    failed=$((failed + 1)) && say "FAILED: $name"
    return 1
  fi
}

inside() { # inside ROOT COMMAND...
  chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "${@:2}"
}

# ---- The roots ----

make_base() {
  [[ ! -e $work/base.made ]] || return 0
  rm -rf "$work/base"
  # An older debootstrap does not know the name of a later release, whose script is that of all Ubuntus.
  local script=()
  [[ -e /usr/share/debootstrap/scripts/$release ]] || script=(/usr/share/debootstrap/scripts/gutsy)
  debootstrap --variant=minbase --components="$areas" --include=systemd,systemd-sysv,dbus,ca-certificates "$release" \
    "$work/base" "$mirror" "${script[@]}"
  printf '%s\n' "$sources" >"$work/base/etc/apt/sources.list"
  cp --dereference --remove-destination /etc/resolv.conf "$work/base/etc/resolv.conf"
  inside "$work/base" apt-get update
  touch "$work/base.made"
}

# copy_of BASE NAME PACKAGE...: a root with these packages, of which nothing is started meanwhile.
copy_of() {
  rm -rf "${work:?}/$2"
  cp -a --reflink=auto "$work/$1" "$work/$2"
  printf '#!/bin/sh\nexit 101\n' >"$work/$2/usr/sbin/policy-rc.d"
  chmod 755 "$work/$2/usr/sbin/policy-rc.d"
  inside "$work/$2" apt-get install --yes --no-install-recommends "${@:3}"
  rm "$work/$2/usr/sbin/policy-rc.d"
}

make_roots() {
  make_base
  [[ -e $work/build.made ]] || { copy_of base build make git debhelper lintian && touch "$work/build.made"; }
  [[ -e $work/ready.made ]] || { copy_of base ready postgresql openssl curl && touch "$work/ready.made"; }
  # What the package says that it needs, beside what every package may rely on; dpkg-buildpackage looks again.
  local needs
  needs=$(sed -n '/^Build-Depends:/,/^[^ ]/p' "$checkout/packaging/debian/control" | sed -n 's/^ //p' | tr '\n' ' ')
  inside "$work/build" apt-get satisfy --yes --no-install-recommends "build-essential, ${needs%, }"
}

# ---- The package ----

build_package() {
  local tree=$work/build/root/chatterd
  rm -rf "$tree"
  mkdir -p "$tree"
  git -C "$checkout" ls-files -z | tar --directory="$checkout" --create --null --files-from=- | tar --extract --no-same-owner --directory="$tree"
  inside "$work/build" git -C /root/chatterd init --quiet
  inside "$work/build" git -C /root/chatterd add --all
  inside "$work/build" git -C /root/chatterd -c user.name=test -c user.email=test@localhost commit --quiet --message=test
  inside "$work/build" make -C /root/chatterd deb
  inside "$work/build" make -C /root/chatterd stand-in
}

# The same package with a higher version and a changed configuration file, to upgrade to.
make_next() {
  local deb=$1 next=$work/next
  rm -rf "$next"
  dpkg-deb --raw-extract "$deb" "$next"
  sed -i 's/^Version: .*/&+next/' "$next/DEBIAN/control"
  printf '# A line of the next version.\n' >>"$next/etc/chatterd/chatterd.env"
  dpkg-deb --root-owner-group --build "$next" "$work/next.deb"
}

# ---- The machine ----

prepare_machine() {
  local root=$work/machine
  rm -rf "$root"
  cp -a --reflink=auto "$work/ready" "$root"
  cp "$work"/build/root/chatterd/build/deb/chatterd_*.deb "$root/root/chatterd.deb"
  make_next "$root/root/chatterd.deb"
  cp "$work/next.deb" "$root/root/next.deb"
  # What it depends on, while there is a network; it itself is installed on the booted machine.
  inside "$root" apt-get satisfy --yes --no-install-recommends "$(dpkg-deb --field "$root/root/chatterd.deb" Depends)"
  cp "$work/build/root/chatterd/build/release/ollama_stand_in" "$root/usr/local/bin/"
  mkdir -p "$root/root/checkout/scripts" "$root/root/checkout/tests" "$root/root/checkout/docs"
  cp "$checkout/docs/operations.md" "$root/root/checkout/docs/"
  cp "$checkout/scripts/"*.sh "$root/root/checkout/scripts/"
  cp "$checkout/tests/checks.sh" "$checkout/tests/package_machine.sh" "$root/root/checkout/tests/"
  printf '%s\n' '[Unit]' 'After=multi-user.target' 'SuccessAction=poweroff-force' 'FailureAction=poweroff-force' '[Service]' 'Type=oneshot' \
    'ExecStart=/root/checkout/tests/package_machine.sh' 'StandardOutput=file:/root/result' 'StandardError=inherit' \
    >"$root/etc/systemd/system/package-test.service"
  mkdir -p "$root/etc/systemd/system/default.target.wants"
  ln -sf ../package-test.service "$root/etc/systemd/system/default.target.wants/"
  : >"$root/root/result"  # so that a machine that does not even boot has one, which lacks its end
}

run_machine() {
  local i
  launch TERM "$work/machine.log" systemd-nspawn --directory="$work/machine" --machine="package-test-$$" --private-network \
    --register=no --keep-unit --boot --console=pipe
  machine=$launched
  for ((i = 0; i < 6000; i++)); do
    kill -0 "$machine" 2>/dev/null || break
    sleep 0.1
  done
  stop_process "$machine"
  machine=''
  grep -v -e '^ok: ' -e '^The end$' "$work/machine/root/result" || true
  passed=$((passed + $(grep -c '^ok: ' "$work/machine/root/result" || true)))
  failed=$((failed + $(grep -c '^FAILED: ' "$work/machine/root/result" || true)))
  if [[ $(tail -n 1 "$work/machine/root/result") != 'The end' ]]; then
    tail -n 25 "$work/machine.log"
    failed=$((failed + 1)) && say 'FAILED: the machine came to the end of its tests'
  fi
}

need_packages debootstrap systemd-container dpkg
say "Making the roots ($release)"
logged "$work/roots.log" make_roots
say 'Building the package'
logged "$work/build.log" build_package
step 'lintian accepts the package' inside "$work/build" sh -c 'lintian --allow-root --fail-on error,warning /root/chatterd/build/deb/chatterd_*.changes' || true
say 'Booting a machine'
logged "$work/prepare.log" prepare_machine
run_machine
say "$passed passed, $failed failed"
((failed == 0))
