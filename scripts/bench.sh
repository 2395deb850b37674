#!/usr/bin/env bash
# Runs one benchmark: checks its result first, then alternates the baseline and ours in one run.
#
#   scripts/bench.sh NAME [ARGUMENT...]       scripts/bench.sh --list
#
# Prints, last, one line per figure: RESULT <name> <value> <unit> baseline=<value> ratio=<x>
. "$(dirname "$0")/common.sh"
name=${1:---help}
case $name in
  --help) usage; exit 0 ;;
  --list) (cd "$ROOT/bench" && ls -- *.sh *_bench.cc */*_bench.cc 2>/dev/null | sed 's|.*/||; s/\(_bench\)\?\.\(sh\|cc\)$//'); exit 0 ;;
esac
shift
"$ROOT/scripts/setup.sh"
if [ -x "$ROOT/bench/$name.sh" ]; then
  "$ROOT/scripts/build.sh"
  exec "$ROOT/bench/$name.sh" "$@"
fi
"$ROOT/scripts/build.sh" "${name}_bench" || die "no benchmark called $name (see scripts/bench.sh --list)"
exec "$BUILD/dev/bin/${name}_bench" "$@"
