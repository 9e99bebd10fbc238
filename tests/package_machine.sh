#!/usr/bin/env bash
# What scripts/package-test.sh runs on the machine that it boots, as root: the package from its installation to its
# purge, as docs/operations.md has it. Nothing here is for a machine that somebody uses.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -e /root/chatterd.deb && -e /root/next.deb ]] || exit 1

# shellcheck disable=SC2034  # checks.sh reads it
pattern='' work=$(mktemp -d)
# shellcheck source=tests/checks.sh
. "$checkout/tests/checks.sh"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

state_of() { systemctl show --property="$1" --value chatterd; }
fetch() { curl --silent --show-error --max-time 5 --insecure "https://localhost$1"; }
serves() { [[ $(fetch / 2>&1) == '"EECS Reactive chatterd"' ]]; }
log_has() { journalctl --unit=chatterd --output=cat --no-pager | grep -q -e "$1"; }
ask() { "$checkout/scripts/llmchat.sh" -k --url https://localhost --model stand-in "$@"; }
make_certificate() { /usr/lib/chatterd/scripts/make-cert.sh --out-dir /etc/chatterd --force localhost 127.0.0.1; }
fingerprint() { openssl x509 -noout -fingerprint -sha256; }
served_fingerprint() { openssl s_client -connect localhost:443 </dev/null 2>/dev/null | fingerprint; }
serves_certificate() { [[ $(served_fingerprint) == "$(fingerprint </etc/chatterd/chatterd.crt)" ]]; }

installs() {
  dpkg --install /root/chatterd.deb
  expect '640 root:chatterd' "$(stat -c '%a %U:%G' /etc/chatterd/chatterd.env)"
  expect disabled "$(systemctl is-enabled chatterd || true)"
  expect disabled "$(systemctl is-enabled chatterd.socket || true)"
  expect inactive "$(systemctl is-active chatterd || true)"
  expect_part ':/var/lib/chatterd:/usr/sbin/nologin' "$(getent passwd chatterd)"
}

units_accepted() {
  expect '' "$(systemd-analyze verify --man=no chatterd.service chatterd.socket 2>&1)"
  systemd-analyze security --no-pager --threshold=16 chatterd.service | tail -n 3
}

comes_up() {
  /usr/lib/chatterd/scripts/setup-db.sh | tail -n 1 >>/etc/chatterd/chatterd.env
  make_certificate
  systemctl enable --now chatterd
  serves
  expect 'This is the stand-in, not a model. You have sent 1 prompt so far; the first was: Hello' "$(ask course-vm Hello)"
  expect 2 "$(runuser -u postgres -- psql -qAt chatterdb --command="select count(*) from chatts where appid = 'course-vm'")"
}

has_no_rights() {
  local status
  status=$(</proc/"$(state_of MainPID)"/status)
  expect "$(id -u chatterd)" "$(sed -n 's/^Uid:\t\([0-9]*\).*/\1/p' <<<"$status")"
  expect 0000000000000400 "$(sed -n 's/^CapBnd:\t//p' <<<"$status")" # CAP_NET_BIND_SERVICE
  expect 2 "$(sed -n 's/^Seccomp:\t//p' <<<"$status")"
  expect '600 root' "$(stat -c '%a %U' /etc/chatterd/chatterd.key)"
  expect '700 chatterd' "$(stat -c '%a %U' /var/lib/chatterd)"
}

starts_without_others() {
  systemctl stop chatterd postgresql ollama
  systemctl start chatterd
  serves
  systemctl start postgresql ollama
  eventually ask others Hello
}

takes_new_certificate() {
  serves_certificate
  local process
  process=$(state_of MainPID)
  make_certificate
  systemctl reload chatterd
  eventually serves_certificate
  expect "$process" "$(state_of MainPID)"
  # certbot's hook does both.
  mkdir -p /root/live
  /usr/lib/chatterd/scripts/make-cert.sh --cert /root/live/fullchain.pem --key /root/live/privkey.pem localhost
  RENEWED_LINEAGE=/root/live /usr/lib/chatterd/certbot-hook
  eventually serves_certificate
  expect "$process" "$(state_of MainPID)"
  expect "$(fingerprint </root/live/fullchain.pem)" "$(served_fingerprint)"
}

keeps_certificate() {
  local served
  served=$(served_fingerprint)
  printf 'nonsense\n' >/etc/chatterd/chatterd.key
  systemctl reload chatterd || true
  eventually log_has 'reload_failed'
  serves
  expect "$served" "$(served_fingerprint)"
  make_certificate
  systemctl reload chatterd
  eventually serves_certificate
}

comes_back() {
  local process
  process=$(state_of MainPID)
  kill -KILL "$process"
  eventually serves
  [[ $(state_of MainPID) != "$process" ]]
}

says_wrong_configuration() {
  cp -p /etc/chatterd/chatterd.env "$work/env"
  printf 'CHATTERD_MAX_STREAMS=many\n' >>/etc/chatterd/chatterd.env
  ! systemctl restart chatterd || return 1
  expect 2 "$(state_of ExecMainStatus)"
  # systemd looked at the configuration, not at the clock: it is not tried again.
  expect failed "$(systemctl is-active chatterd || true)"
  eventually log_has "CHATTERD_MAX_STREAMS.*'many' is not a whole number"
  cp -p "$work/env" /etc/chatterd/chatterd.env
  systemctl restart chatterd
  serves
}

# A file in the place of the device, which a machine of systemd-nspawn does not have: it keeps what is written to it.
latency_is_asked_for() { expect '           0  2000000000' "$(od -An -td4 -N8 /dev/cpu_dma_latency)"; }
takes_device() {
  : >/dev/cpu_dma_latency
  mkdir -p /etc/systemd/system/chatterd.service.d
  grep -B 1 -A 1 '^OpenFile=' "$checkout/docs/operations.md" >/etc/systemd/system/chatterd.service.d/latency.conf
  systemctl daemon-reload
  systemctl restart chatterd
  serves
  eventually latency_is_asked_for
  rm -r /etc/systemd/system/chatterd.service.d
  systemctl daemon-reload
  systemctl restart chatterd
  serves
}

# Clients connect all the time; with the socket none is refused, though chatterd is another one afterwards.
upgrades() {
  local process client
  systemctl stop chatterd
  systemctl enable --now chatterd.socket
  systemctl start chatterd
  process=$(state_of MainPID)
  (while [[ ! -e $work/upgraded ]]; do serves && echo served || fetch / 2>&1 || true; done) >"$work/clients" &
  client=$!
  eventually grep -q served "$work/clients"
  dpkg --force-confold --install /root/next.deb
  eventually serves
  : >"$work/upgraded"
  wait "$client"
  [[ $(state_of MainPID) != "$process" ]]
  expect '' "$(grep -v '^served$' "$work/clients" || true)"
  (($(grep -c served "$work/clients") > 10))
  # What was written into the configuration is still there, and who owns it.
  grep -q '^CHATTERD_DB=.*password=' /etc/chatterd/chatterd.env
  expect '640 root:chatterd' "$(stat -c '%a %U:%G' /etc/chatterd/chatterd.env)"
  expect active "$(systemctl is-active chatterd.socket)"
}

removes() {
  dpkg --remove chatterd
  ! serves || return 1
  expect '' "$(ss -Hltn 'sport = :443' 2>/dev/null || true)"
  [[ -e /etc/chatterd/chatterd.env && -e /etc/chatterd/chatterd.key && -d /var/lib/chatterd ]]
  # And back: it goes on as it was.
  dpkg --install /root/next.deb
  systemctl enable --now chatterd
  eventually serves
}

purges() {
  dpkg --purge chatterd
  [[ ! -e /etc/chatterd && ! -e /var/lib/chatterd && ! -e /run/chatterd && ! -e /usr/bin/chatterd ]]
  expect '' "$(find /etc/systemd /usr/lib/systemd /var/lib/systemd -name '*chatterd*')"
  expect '' "$(dpkg-query -W -f '${Status}' chatterd 2>/dev/null || true)"
}

printf '[Service]\nExecStart=/usr/local/bin/ollama_stand_in --port 11434 --token-ms 5\n' >/etc/systemd/system/ollama.service
systemctl daemon-reload
systemctl start ollama
eventually systemctl --quiet is-active postgresql

check 'Installing makes the user and starts nothing' installs
check 'systemd accepts the installed units, and rates chatterd 1.6 or better' units_accepted
check 'With a database, a certificate and systemctl enable --now it serves' comes_up
check 'It runs as its user with no right but to bind its port, and the key stays with root' has_no_rights
check 'It starts without PostgreSQL and Ollama and serves when they come' starts_without_others
check 'systemctl reload takes a new certificate, by hand or by certbot, with the same process' takes_new_certificate
check 'systemctl reload with a bad key keeps the old one and says so' keeps_certificate
check 'A chatterd that is killed is started again' comes_back
check 'A wrong configuration is said, and not tried again' says_wrong_configuration
# Since systemd 253 there is OpenFile=.
if (($(systemctl --version | sed -n 's/^systemd \([0-9]*\).*/\1/p') >= 253)); then
  check 'A device that systemd opens for it is used, though it is not root' takes_device
fi
check 'An upgrade with the socket refuses no client, and keeps the configuration' upgrades
check 'Removing leaves configuration and state; installed again it goes on' removes
check 'Purging leaves nothing' purges
no_failures || journalctl --unit=chatterd --output=cat --no-pager | tail -n 60
echo 'The end'
