#!/usr/bin/env bash
# Lints docs/openapi.yaml by two linters from npm, at fixed versions; see --help. A check by hand: what
# scripts/test.sh needs is tests/openapi/, which asks nothing of npm.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

redocly=@redocly/cli@1.34.5
spectral=@stoplight/spectral-cli@6.15.0

usage() {
  cat <<END
usage: scripts/lint-openapi.sh

Lints docs/openapi.yaml by $redocly and $spectral, which npx
fetches; npm is installed where it is missing. Exit status 0: no error and no warning.
END
}

case ${1:-} in
  '') ;;
  --help | -h) usage && exit 0 ;;
  *) die "no argument is expected (--help explains)" ;;
esac

command -v npx >/dev/null || need_packages npm
work=$(mktemp -d "${TMPDIR:-/tmp}/lint-openapi.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$checkout"

# Redocly ends with 0 in spite of warnings, of which it gives the number.
say "$redocly"
REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true npx --yes "$redocly" lint --extends recommended-strict \
  --skip-rule info-license docs/openapi.yaml # which licence the project has is not said anywhere
say "$spectral"
printf 'extends: spectral:oas\n' >"$work/ruleset.yaml"
npx --yes "$spectral" lint --fail-severity warn --ruleset "$work/ruleset.yaml" docs/openapi.yaml
