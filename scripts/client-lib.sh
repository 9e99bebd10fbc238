# shellcheck shell=bash
# Shared by the scripts for chatterd's routes; to be sourced. Options, JSON in both directions, one HTTP
# request with curl. It needs bash and curl only, because students' machines may have neither jq nor python.

# Text is handled as bytes: UTF-8 then passes through unchanged whatever the locale is.
LC_ALL=C

script=${0##*/}

die() {
  printf '%s: %s\n' "$script" "$*" >&2
  exit 1
}

# ---- Options ----

# usage 'ARGUMENTS' 'What the script does.': what --help prints; `option_names` are the script's own.
usage() {
  printf 'usage: scripts/%s [-k] [--url URL] %s\n\n%s\n\n' "$script" "$1" "$2"
  printf '  %-13s %s\n' '-k' 'accept a certificate that nobody vouches for, such as a self-signed one'
  printf '  %-13s %s\n' '--url URL' "the chatterd to talk to; default: \$CHATTERD_URL, else https://localhost"
  local name
  for name in "${!option_names[@]}"; do printf '  %-13s %s\n' "$name X" "${option_names[$name]}"; done
}

declare -A option_names=() # a script's own options, each with a value: name -> what it means
declare -A options=() # those that were given: name -> value
arguments=()               # what is not an option
url=${CHATTERD_URL:-https://localhost}
# Of what curl says about an error, the first line: the rest is a lecture on certificates.
curl_options=(-q --silent --no-buffer --include --write-out "%{onerror}%{stderr}$script: %{errormsg}\n")

# The caller has a function `help`.
# shellcheck disable=SC2034  # options are read by the scripts
read_options() {
  while (($#)); do
    case $1 in
      --help | -h) help && exit 0 ;;
      -k | --insecure) curl_options+=(--insecure) ;;
      --url)
        (($# > 1)) || die "$1 needs a value"
        url=$2 && shift
        ;;
      --) shift && arguments+=("$@") && break ;;
      -?*)
        [[ -n ${option_names[$1]:-} ]] || die "unknown option $1 (--help lists them)"
        (($# > 1)) || die "$1 needs a value"
        options[$1]=$2 && shift
        ;;
      *) arguments+=("$1") ;;
    esac
    shift
  done
  [[ $url == *://* ]] || url=https://$url
  url=${url%/}
}

# ---- Writing JSON ----

# json_quote TEXT: sets REPLY to the JSON string.
json_quote() {
  local text=$1 code char
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\r'/\\r}
  text=${text//$'\t'/\\t}
  if [[ $text == *[$'\x01'-$'\x1f']* ]]; then
    for code in {1..31}; do
      printf -v char '\\x%02x' "$code"
      printf -v char '%b' "$char"
      printf -v code '\\u%04x' "$code"
      text=${text//"$char"/"$code"}
    done
  fi
  REPLY="\"$text\""
}

# message_json ROLE CONTENT: sets REPLY to one element of "messages".
message_json() {
  local role
  json_quote "$1" && role=$REPLY
  json_quote "$2" && REPLY="{\"role\":$role,\"content\":$REPLY}"
}

# ---- Reading JSON ----
# `json` is the text still to be read; the json_take functions remove from its beginning what they return.
# They fail on text that ends too early. All of it is meant for tokens and messages: the time grows with the
# square of a text's length and is seconds from some 50 KB on.

json_skip_space() { json=${json#"${json%%[! $'\t\r\n']*}"}; }

# Sets REPLY to the string that json begins with, quotes and escapes as they are.
json_take_string() {
  local part slashes
  REPLY='"' json=${json:1}
  while [[ $json == *\"* ]]; do
    part=${json%%\"*}
    REPLY+=$part\"
    json=${json:${#part}+1}
    slashes=${part##*[!\\]} # an odd number of them before a quote: it belongs to the text
    ((${#slashes} % 2)) || return 0
  done
  return 1
}

# Sets REPLY to the value that json begins with, of any type, as it is written.
json_take_value() {
  local depth=0 plain taken=''
  json_skip_space
  while [[ -n $json ]]; do
    case $json in
      '"'*) json_take_string && taken+=$REPLY || return 1 ;;
      '['* | '{'*) ((++depth)) && taken+=${json:0:1} && json=${json:1} ;;
      ']'* | '}'*) ((depth-- > 0)) && taken+=${json:0:1} && json=${json:1} || return 1 ;;
      *)
        if ((depth)); then plain=${json%%[][\"\{\}]*}; else plain=${json%%[],\} $'\t\r\n']*}; fi
        [[ -n $plain ]] || return 1
        taken+=$plain json=${json:${#plain}}
        ;;
    esac
    if ((depth == 0)); then
      REPLY=$taken
      return 0
    fi
  done
  return 1
}

# json_member OBJECT KEY: sets REPLY to the member's value as it is written; fails if there is none.
json_member() {
  local json=$1 key
  json_skip_space
  [[ $json == '{'* ]] || return 1
  json=${json:1}
  while json_skip_space && [[ $json == '"'* ]]; do
    json_take_string || return 1
    key=$REPLY
    json_skip_space
    [[ $json == :* ]] || return 1
    json=${json:1}
    json_take_value || return 1
    [[ $key != "\"$2\"" ]] || return 0
    json_skip_space
    json=${json#,}
  done
  return 1
}

# json_text VALUE: sets REPLY to the text of a JSON string; fails for another type.
json_text() {
  [[ $1 == \"*\" ]] || return 1
  local rest=${1:1:${#1}-2} plain text='' char
  while [[ $rest == *\\* ]]; do
    plain=${rest%%\\*}
    char=${rest:${#plain}+1:1}
    rest=${rest:${#plain}+2}
    case $char in
      n) char=$'\n' ;;
      t) char=$'\t' ;;
      r) char=$'\r' ;;
      b) char=$'\b' ;;
      f) char=$'\f' ;;
      u) json_unicode ;; # takes its digits from rest, sets char
    esac
    text+=$plain$char
  done
  REPLY=$text$rest
}

# The rest of \uXXXX, or of two of them that make one character. Works on json_text's variables.
json_unicode() {
  local code low
  [[ $rest =~ ^[0-9A-Fa-f]{4} ]] || return 0
  code=$((16#${rest:0:4}))
  rest=${rest:4}
  if ((code >= 0xD800 && code <= 0xDBFF)) && [[ $rest =~ ^\\u([Dd][C-Fc-f][0-9A-Fa-f]{2}) ]]; then
    low=$((16#${BASH_REMATCH[1]}))
    rest=${rest:6}
    code=$((0x10000 + ((code - 0xD800) << 10) + low - 0xDC00))
  fi
  # Half a pair is no character, and bash can't hold NUL: U+FFFD stands for both.
  ((code != 0 && (code < 0xD800 || code > 0xDFFF))) || code=$((0xFFFD))
  utf8_bytes "$code"
}

utf8_bytes() {
  local code=$1 format='\\x%02x'
  if ((code < 0x80)); then
    # shellcheck disable=SC2059  # the formats are the ones below
    printf -v char "$format" "$code"
  elif ((code < 0x800)); then
    # shellcheck disable=SC2059
    printf -v char "$format$format" $((0xC0 | code >> 6)) $((0x80 | code & 63))
  elif ((code < 0x10000)); then
    # shellcheck disable=SC2059
    printf -v char "$format$format$format" $((0xE0 | code >> 12)) $((0x80 | code >> 6 & 63)) \
      $((0x80 | code & 63))
  else
    # shellcheck disable=SC2059
    printf -v char "$format$format$format$format" $((0xF0 | code >> 18)) $((0x80 | code >> 12 & 63)) \
      $((0x80 | code >> 6 & 63)) $((0x80 | code & 63))
  fi
  printf -v char '%b' "$char"
}

# ---- One request ----

# request METHOD PATH BODY READER: the function READER gets the body of a 200 on its standard input, as it
# arrives. Any other answer is said on standard error. The result is whether all went well.
request() {
  local method=$1 path=$2 body=$3 reader=$4 statuses
  command -v curl >/dev/null || die 'curl is missing: sudo apt-get install curl'
  local sent=(--request "$method")
  # From standard input, since an argument's length is limited. No Expect: chatterd needs no asking first.
  [[ $method != POST ]] ||
    sent+=(--data-binary @- --header 'Content-Type: application/json' --header 'Expect:')
  # printf's own status does not count: curl may well stop reading when it has its answer.
  { printf '%s' "$body" 2>/dev/null || true; } |
    curl "${curl_options[@]}" "${sent[@]}" "$url$path" | answer "$reader" ||
    statuses=("${PIPESTATUS[@]}")
  [[ -z ${statuses[*]:-} ]] && return 0
  [[ ${statuses[1]} != 60 ]] || printf '%s: if this is your own self-signed certificate: -k\n' "$script" >&2
  return 1
}

# Reads the head of the answer, then leaves the body to the reader.
answer() {
  local line status=''
  while IFS= read -r line; do
    line=${line%$'\r'}
    if [[ $line == HTTP/* ]]; then
      status=${line#* }
      status=${status%% *}
    elif [[ -z $line && $status != 1?? ]]; then # 1xx: another head follows
      break
    fi
  done
  [[ -n $status ]] || return 1 # curl has said why
  if [[ $status == 200 ]]; then "$1"; else refused "$status"; fi
}

refused() {
  local body
  body=$(tr -d '\0')
  json_member "$body" error && json_text "$REPLY" || REPLY=${body:0:300}
  printf '%s: %s (HTTP status %s)\n' "$script" "$REPLY" "$1" >&2
  return 1
}

# For replies that say nothing but that it is done.
nothing() { cat >/dev/null; }

# ---- Text that streams ----

at_line_start=yes # whether the text printed so far ends in a newline

print_text() {
  [[ -n $1 ]] || return 0
  printf '%s' "$1"
  if [[ $1 == *$'\n' ]]; then at_line_start=yes; else at_line_start=''; fi
}

# The prompt of the shell should not stick to the text.
end_text() { [[ -n $at_line_start ]] || print_text $'\n'; }

# stream_error JSON: says what the object's "error" says.
stream_error() {
  end_text
  json_member "$1" error && { json_text "$REPLY" || true; } || REPLY=$1
  printf '%s: %s\n' "$script" "$REPLY" >&2
}
