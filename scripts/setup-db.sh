#!/usr/bin/env bash
# chatterd's role, database and table; see --help.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'END'
usage: scripts/setup-db.sh [--role NAME] [--database NAME] [--password PASSWORD]

Makes what chatterd needs in this machine's PostgreSQL: a role (chatter), a database (chatterdb) and the
table chatts, or brings up to date what is there; no row is lost, and running it again changes nothing.
It works as the user postgres through sudo; where PGHOST, PGPORT, PGUSER or PGSERVICE is set, as these say.

The role's password: --password, else $CHATTER_PASSWORD (which other users can't see in the list of
processes). With neither, a new role gets a random one, which is shown; a role that exists keeps its own.
END
}

role=chatter database=chatterdb password=${CHATTER_PASSWORD:-}
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --role | --database | --password)
      (($# > 1)) || die "$1 needs a value"
      case $1 in
        --role) role=$2 ;;
        --database) database=$2 ;;
        --password) password=$2 ;;
      esac
      shift
      ;;
    *) die "unknown argument $1 (--help explains)" ;;
  esac
  shift
done
[[ $password != *[[:cntrl:]]* ]] || die 'a password with control characters is not accepted'

command -v psql >/dev/null || die 'psql is missing: sudo apt-get install postgresql'
if [[ -n ${PGHOST:-}${PGPORT:-}${PGUSER:-}${PGSERVICE:-} ]]; then
  as_superuser=()
elif ((EUID == 0)); then
  as_superuser=(env -C / setpriv --reuid=postgres --regid=postgres --init-groups)
else
  as_superuser=(sudo --user=postgres env -C /)
fi

# run_sql DATABASE: runs its standard input, quietly and only if all of it works.
run_sql() {
  "${as_superuser[@]}" psql --no-psqlrc --quiet --no-align --tuples-only --set=ON_ERROR_STOP=1 \
    --set=role="$role" --set=database="$database" --dbname="$1"
}

# In single quotes, for psql and for a connection string.
in_quotes() {
  local text=${1//\\/\\\\}
  printf "'%s'" "${text//\'/\\\'}"
}

# The same only where it is needed.
conninfo_value() {
  if [[ $1 =~ ^[A-Za-z0-9_./:-]+$ ]]; then printf '%s' "$1"; else in_quotes "$1"; fi
}

schema() {
  if [[ -x $checkout/chatterd ]]; then "$checkout/chatterd" --print-schema; else cat "$checkout/schema.sql"; fi
}

check_reachable() {
  local error
  error=$(run_sql postgres <<<'select' 2>&1) && return 0
  printf '%s\n' "$error" >&2
  say 'PostgreSQL does not let this script in. On Debian and Ubuntu:' \
    'sudo apt-get install postgresql; then pg_lsclusters shows the clusters, sudo pg_ctlcluster VERSION main' \
    'start starts one, and sudo pg_createcluster VERSION main --start makes one where there is none.' >&2
  exit 1
}

# The password goes in on standard input: an argument could be seen by other users.
make_role() {
  local exists
  exists=$(run_sql postgres <<<"select 1 from pg_roles where rolname = :'role'")
  [[ -n $password || -n $exists ]] || password=$(random_hex 16)
  run_sql postgres <<<"select format('create role %I', :'role')
    where not exists (select from pg_roles where rolname = :'role') \gexec
    alter role :\"role\" login;"
  [[ -n $password ]] || return 0
  printf '\\set password %s\nalter role :"role" password :%s;\n' "$(in_quotes "$password")" "'password'" |
    run_sql postgres
}

make_database() {
  run_sql postgres <<<"select format('create database %I owner %I encoding ''UTF8'' template template0', :'database', :'role')
    where not exists (select from pg_database where datname = :'database') \gexec
    grant connect, create, temporary on database :\"database\" to :\"role\";"
}

# A table made by hand often belongs to postgres; only its owner may alter it.
make_table() {
  run_sql "$database" <<<"grant usage, create on schema public to :\"role\";
    select format('alter table public.chatts owner to %I', :'role') where to_regclass('public.chatts') is not null \gexec"
  # The schema is run as the role that will own what it makes. Its notices ("already exists") say nothing new.
  { printf 'set client_min_messages = warning;\nset role :"role";\nset search_path = public;\n' && schema; } |
    run_sql "$database" >/dev/null
}

report() {
  local owner
  owner=$(run_sql "$database" <<<"select tableowner from pg_tables where schemaname = 'public' and tablename = 'chatts'")
  [[ $owner == "$role" ]] || die "the table chatts belongs to \"$owner\" instead of $role"
  say "Role $role, database $database and its table chatts are ready."
  local conninfo comment=''
  conninfo="host=$(conninfo_value "${PGHOST:-localhost}")${PGPORT:+ port=$PGPORT}"
  conninfo+=" user=$(conninfo_value "$role") dbname=$(conninfo_value "$database")"
  if [[ -z $password ]]; then
    say "The role's password was left as it is; chatterd's environment file needs, with that password and no \"#\":"
    conninfo+=" password=..." comment='#' # where it is appended unread, the line of before goes on counting
  else
    say "The line for chatterd's environment file:"
    conninfo+=" password=$(conninfo_value "$password")"
  fi
  # systemd reads backslash and quote in double quotes as the shell does.
  conninfo=${conninfo//\\/\\\\}
  say "${comment}CHATTERD_DB=\"${conninfo//\"/\\\"}\""
}

check_reachable
make_role
make_database
make_table
report
