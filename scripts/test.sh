#!/usr/bin/env bash
# Sets up, builds and runs the tests.
#
#   scripts/test.sh [--preset NAME] [CTEST OPTION...]
#
#   scripts/test.sh                     everything
#   scripts/test.sh -L unit             by label: unit, integration, faults, slow, gpu
#   scripts/test.sh -R ChannelKl        by name
# Tests that need a GPU skip themselves and say so.
. "$(dirname "$0")/common.sh"
preset=dev
if [ "${1:-}" = --preset ]; then preset=${2:?--preset needs a name}; shift 2; fi
[ "${1:-}" = --help ] && { usage; exit 0; }
"$ROOT/scripts/setup.sh"
"$ROOT/scripts/build.sh" --preset "$preset"
cd "$ROOT"
say "running the tests"
ctest --preset "$preset" -j "$(nproc)" --output-on-failure "$@"
