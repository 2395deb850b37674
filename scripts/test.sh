#!/usr/bin/env bash
# Sets up, builds and runs the tests.
#
#   scripts/test.sh [--preset NAME] [--containers] [CTEST OPTION...]
#
#   scripts/test.sh                     everything
#   scripts/test.sh -L unit             by label: unit, integration, faults, deploy, slow, gpu
#   scripts/test.sh -R ChannelKl        by name
# Tests that need a GPU or a container engine skip themselves and say so. --containers (the default when CI=true) installs an engine
# for them, see scripts/setup.sh.
. "$(dirname "$0")/common.sh"
preset=dev
setup=()
[ "${CI:-}" != true ] || setup=(--containers)
while [ $# -gt 0 ]; do
  case $1 in
    --preset) preset=${2:?--preset needs a name}; shift 2 ;;
    --containers) setup=(--containers); shift ;;
    --help) usage; exit 0 ;;
    *) break ;;
  esac
done
"$ROOT/scripts/setup.sh" "${setup[@]}"
"$ROOT/scripts/build.sh" --preset "$preset"
cd "$ROOT"
say "running the tests"
ctest --preset "$preset" -j "$(nproc)" --output-on-failure "$@"
