# shellcheck shell=bash
# Shared by quickstart.sh, test.sh and setup-db.sh; to be sourced. It holds what they do to a machine:
# install Debian packages, run a PostgreSQL of their own, and stop exactly what they started.

# shellcheck disable=SC2034  # used by the scripts that source this file
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# What chatterd is built from, and what every script here calls.
# shellcheck disable=SC2034  # used by the scripts that source this file
build_packages=(g++ make pkg-config libcpp-httplib-dev libpq-dev nlohmann-json3-dev libssl-dev openssl curl)

say() { printf '%s\n' "$*"; }
die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# Runs "$@" with its output in the file $1 and nothing on the terminal. If it fails, its last lines are shown.
quietly() {
  local log=$1
  shift
  "$@" </dev/null >"$log" 2>&1 && return 0
  tail -n 25 "$log" >&2
  die "this failed: $*   (all of its output: $log)"
}

random_hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

# ---- Packages ----

as_root() {
  if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

is_installed() { [[ $(dpkg-query -W -f='${Status}' "$1" 2>/dev/null) == 'install ok installed' ]]; }

# The folder of the newest PostgreSQL server programs (initdb, postgres), which Debian keeps out of PATH.
server_bin() {
  local newest
  newest=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
  [[ -x $newest ]] && printf '%s\n' "${newest%/initdb}"
}

# need_packages NAME...: installs those Debian packages that are missing and says so in one line. The name
# "postgresql-server" stands for the server of whichever version this Debian has.
need_packages() {
  local name missing=()
  for name in "$@"; do
    if [[ $name == postgresql-server ]]; then
      [[ -n $(server_bin) ]] || missing+=("$name")
    else
      is_installed "$name" || missing+=("$name")
    fi
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || die "apt-get is missing; install by hand: ${missing[*]}"
  ((EUID == 0)) || command -v sudo >/dev/null ||
    die "neither root nor sudo, so as root first: apt-get install ${missing[*]}"
  say "Installing ${missing[*]}"
  local log
  log=$(mktemp "${TMPDIR:-/tmp}/apt-get.XXXXXX.log")
  update_lists "$log"
  install_packages "$log" "${missing[@]}"
  rm -f "$log"
}

# Sets $promtool to Prometheus' checker of metrics and rules: an installed one, or that of Debian in build/tools,
# from its package promtool or, before Debian 14, prometheus. Neither is installed: the latter would start a server.
need_promtool() {
  local folder=$checkout/build/tools new log
  promtool=$(command -v promtool) || promtool=$folder/promtool
  [[ ! -x $promtool ]] || return 0
  say "Downloading Debian's promtool"
  mkdir -p "$folder"
  log=$folder/apt-get.log
  new=$(mktemp -d "$folder/new.XXXXXX")
  download_promtool "$new" >"$log" 2>&1 ||
    { apt_get update && download_promtool "$new"; } >>"$log" 2>&1 ||
    die "apt-get could not download promtool, nor prometheus, which has it on older systems (its output: $log)"
  dpkg-deb --fsys-tarfile "$new"/prom*.deb | tar -x -C "$new" ./usr/bin/promtool
  mv "$new/usr/bin/promtool" "$promtool"
  rm -rf "$new"
}

download_promtool() (
  cd "$1" && { apt-get download promtool || apt-get download prometheus; }
)

apt_get() {
  # The timeout: on a fresh virtual machine the system's own updates often hold the lock for a minute.
  as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

# A failing update is no reason to stop: one unreachable third-party source makes it fail. But the lock on the lists,
# for which apt-get does not wait, is held on a fresh virtual machine too, and the lists may be none yet.
update_lists() {
  local log=$1 i
  for ((i = 0; i < 60; i++)); do
    if apt_get update >"$log" 2>&1 || ! grep -q 'Could not get lock /var/lib/apt/lists/' "$log"; then return 0; fi
    sleep 5
  done
}

install_packages() {
  local log=$1 i
  shift
  local names=("$@") server=''
  for i in "${!names[@]}"; do
    [[ ${names[i]} == postgresql-server ]] || continue
    server=$(LC_ALL=C apt-cache depends postgresql | sed -n 's/^ *Depends: \(postgresql-[0-9]*\)$/\1/p' | head -n 1) || true
    [[ -n $server ]] || die "no package of a PostgreSQL server is known to apt-get (its output: $log)"
    names[i]=$server
  done
  # A subshell, for its traps: what is switched off for this installation is on again behind a ^C as well.
  (
    if [[ -n $server ]]; then
      trap allow_main_cluster EXIT
      trap 'exit 130' INT TERM HUP
      forbid_main_cluster || exit 1
    fi
    apt_get install --yes --no-install-recommends "${names[@]}" >>"$log" 2>&1
  ) && return 0
  grep -E '^(E|W|Err):' "$log" >&2 || tail -n 25 "$log" >&2
  die "apt-get could not install ${names[*]} (all of its output: $log)"
}

# Debian's server package makes a cluster "main" on port 5432 when it is installed. Ours is private, so that
# is switched off for this one installation, in a file of our own: no existing configuration is changed.
cluster_folder=/etc/postgresql-common/createcluster.d
forbid_main_cluster() {
  as_root mkdir -p "$cluster_folder"
  printf 'create_main_cluster = false\n' | as_root tee "$cluster_folder/chatterd-scripts.conf" >/dev/null
}
allow_main_cluster() {
  as_root rm -f "$cluster_folder/chatterd-scripts.conf"
  as_root rmdir "$cluster_folder" 2>/dev/null || true
}

# ---- Processes ----

# launch SIGNAL LOG COMMAND...: starts it in the background, below a guard, and sets $launched to the guard's
# process id. Told to end, the guard sends the command SIGNAL, and ends with it and with its status. The
# kernel tells the guard to end when this script dies, even by kill -9; the command itself could not be
# told so, because that is forgotten when a program changes its user, as chatterd and PostgreSQL do.
# The two have a session of their own because ^C goes to a whole terminal: the script, not ^C, decides the
# order in which the programs stop.
launch() {
  local signal=$1 log=$2
  shift 2
  : >"$log" # here, not only by the guard: what an earlier run wrote must not be read as this one's
  # shellcheck disable=SC2016  # expanded by the guard
  setsid setpriv --pdeathsig TERM bash -c '
    signal=$1 child="" told=""
    shift
    trap "told=yes; [[ -z \$child ]] || kill -s \$signal \$child" TERM
    "$@" &
    child=$!
    [[ -z $told ]] || kill -s "$signal" "$child"
    wait "$child"
    status=$?
    while kill -0 "$child"; do # that was the signal, not the end
      wait "$child"
      status=$?
    done 2>/dev/null
    exit "$status"' guard "$signal" "$@" </dev/null >"$log" 2>&1 &
  # shellcheck disable=SC2034  # read by the caller
  launched=$!
}

# stop_process PID: for what launch started. Waits up to 20 s, then insists.
stop_process() {
  local pid=$1 i
  kill -s TERM "$pid" 2>/dev/null || return 0
  for ((i = 0; i < 400; i++)); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.05
  done
  kill -s KILL -- "-$pid" 2>/dev/null || true
}

# address_in LOG PID: waits up to 30 s for the line of a program that says where it listens.
address_in() {
  local log=$1 pid=$2 i address
  for ((i = 0; i < 600; i++)); do
    address=$(grep -os 'listening on http.*' "$log" | tail -n 1 | sed 's/^listening on //') || true
    [[ -z $address ]] || break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.05
  done
  [[ -n $address ]] && printf '%s\n' "$address"
}

# ---- A private PostgreSQL ----
# It listens on 127.0.0.1 only, on a free port, without a Unix socket (a socket's path may have 107 bytes,
# which a checkout's easily exceeds), and asks for a random password: other users of this machine can
# reach the port, and a superuser of PostgreSQL can run programs. What other roles are asked for is $db_auth.

db_home=''  # the private cluster's folder; empty while there is none
db_pid=''
db_auth=scram-sha-256

# private_db_start FOLDER [SETTING=VALUE...]: sets db_port and db_password of the superuser "postgres".
# FOLDER holds the log, and the data where the user that runs the server can reach it.
private_db_start() {
  local folder=$1 attempt
  shift
  db_bin=$(server_bin) || die "no PostgreSQL server in /usr/lib/postgresql"
  private_db_discard "$folder"
  db_password=$(random_hex 16)
  db_user=() # the prefix of a command that runs as the server's user
  # The server refuses to run as root.
  ((EUID)) || db_user=(env -C / setpriv --reuid=postgres --regid=postgres --init-groups)
  private_db_make "$folder"
  for ((attempt = 0; attempt < 10; attempt++)); do
    db_port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000)) # below the ports that the kernel hands out
    private_db_try "$folder/postgres.log" "$@" && return 0
    grep -q 'Address already in use' "$folder/postgres.log" || break
  done
  tail -n 5 "$folder/postgres.log" >&2
  die "the private PostgreSQL did not start (its log: $folder/postgres.log)"
}

private_db_make() {
  local folder=$1 base=$1
  # A checkout below /root is out of reach for the user "postgres".
  if ((${#db_user[@]})) && ! "${db_user[@]}" test -x "$folder" 2>/dev/null; then base=/var/tmp; fi
  db_home=$(mktemp -d "$base/chatterd-postgres.XXXXXX")
  printf '%s\n' "$db_home" >"$folder/postgres.folder"
  printf '%s\n' "$db_password" >"$db_home/password"
  ((EUID)) || chown -R postgres:postgres "$db_home"
  quietly "$folder/initdb.log" "${db_user[@]}" "$db_bin/initdb" --pgdata="$db_home/data" --username=postgres \
    --auth=scram-sha-256 --pwfile="$db_home/password" --encoding=UTF8 --locale=C --no-sync
  rm -f "$db_home/password"
  printf 'host all %s 127.0.0.1/32 %s\n' postgres scram-sha-256 all "$db_auth" >"$db_home/data/pg_hba.conf"
}

private_db_try() {
  local log=$1 setting i settings=()
  shift
  for setting in port="$db_port" listen_addresses=127.0.0.1 unix_socket_directories= "$@"; do
    settings+=(-c "$setting")
  done
  # INT is PostgreSQL's fast shutdown.
  launch INT "$log" "${db_user[@]}" "$db_bin/postgres" -D "$db_home/data" "${settings[@]}"
  db_pid=$launched
  for ((i = 0; i < 600; i++)); do
    # The file's eighth line is the server's state; pg_ctl reads it likewise.
    [[ $(sed -n 8p "$db_home/data/postmaster.pid" 2>/dev/null) == ready* ]] && return 0
    kill -0 "$db_pid" 2>/dev/null || return 1
    sleep 0.05
  done
  return 1
}

# Safe to call at any time, also when nothing was started.
private_db_stop() {
  [[ -z $db_pid ]] || stop_process "$db_pid"
  [[ -z $db_home ]] || rm -rf "$db_home"
  db_pid='' db_home=''
}

# Removes what a run that was killed left behind. The server itself has ended with that run.
private_db_discard() {
  local folder=$1 old
  [[ -r $folder/postgres.folder ]] || return 0
  old=$(<"$folder/postgres.folder")
  [[ $old != */chatterd-postgres.?????? || $old == *..* ]] || rm -rf "$old"
  rm -f "$folder/postgres.folder"
}
