#!/usr/bin/env bash
# A self-signed certificate for chatterd; see --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/make-cert.sh [--out-dir DIR] [--cert FILE] [--key FILE] [--force] NAME|ADDRESS...

Makes a self-signed certificate for the names and IP addresses given, the way phones reach this machine:
  scripts/make-cert.sh localhost 127.0.0.1 203.0.113.7
writes chatterd.crt and chatterd.key to DIR (default: this folder) or to FILE. It does not replace files
that are there, unless with --force. Phones must be told to trust the certificate, curl with -k or --cacert.
END
}
die() {
  printf 'make-cert.sh: %s\n' "$*" >&2
  exit 1
}

days=825 # more is not accepted by iOS

is_ipv4() {
  local number='(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])'
  [[ $1 =~ ^$number(\.$number){3}$ ]]
}

# "DNS:a,IP:b", the form of OpenSSL's subjectAltName.
alt_names() {
  local name list=()
  for name in "$@"; do
    if is_ipv4 "$name"; then
      list+=("IP:$name")
    elif [[ $name == *:* ]]; then
      name=${name#[}
      list+=("IP:${name%]}")
    elif [[ $name =~ ^(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?$ && ! $name =~ ^[0-9.]+$ ]]; then
      list+=("DNS:$name")
    else
      die "neither a host name nor an IP address: $name"
    fi
  done
  local IFS=,
  printf '%s' "${list[*]}"
}

# Its own configuration, so that the machine's openssl.cnf has no say. CA:TRUE lets a phone import the
# certificate as one to trust; serverAuth is what iOS asks for.
configuration() {
  printf '%s\n' '[req]' 'distinguished_name = subject' 'x509_extensions = extensions' 'prompt = no' \
    '[subject]' "CN = ${1:0:64}" '[extensions]' "subjectAltName = $2" 'basicConstraints = critical, CA:TRUE' \
    'keyUsage = critical, digitalSignature, keyCertSign' 'extendedKeyUsage = serverAuth' \
    'subjectKeyIdentifier = hash'
}

out_dir=. cert='' key='' force='' names=()
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --force) force=yes ;;
    --out-dir | --cert | --key)
      (($# > 1)) || die "$1 needs a value"
      case $1 in
        --out-dir) out_dir=$2 ;;
        --cert) cert=$2 ;;
        --key) key=$2 ;;
      esac
      shift
      ;;
    -*) die "unknown option $1 (--help lists them)" ;;
    *) names+=("$1") ;;
  esac
  shift
done
((${#names[@]})) || die 'no name or address given (--help shows an example)'
command -v openssl >/dev/null || die 'openssl is missing: sudo apt-get install openssl'
cert=${cert:-$out_dir/chatterd.crt} key=${key:-$out_dir/chatterd.key}
if [[ -z $force ]]; then
  for file in "$cert" "$key"; do
    [[ ! -e $file ]] || die "$file is already there (--force replaces it)"
  done
fi
sans=$(alt_names "${names[@]}")

umask 077
mkdir -p "$(dirname "$cert")" "$(dirname "$key")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
configuration "${names[0]}" "$sans" >"$work/config"
openssl req -x509 -config "$work/config" -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 \
  -days "$days" -keyout "$work/key" -out "$work/cert" 2>"$work/log" ||
  die "openssl did not accept $sans: $(grep -m 1 -o 'bad ip address' "$work/log" || tail -n 1 "$work/log")"
# The old pair goes first, so that no reader ever sees an old key beside a new certificate.
rm -f "$cert" "$key"
install -m 600 "$work/key" "$key"
install -m 644 "$work/cert" "$cert"
printf 'wrote %s and %s for %s\n' "$cert" "$key" "${names[*]}"
