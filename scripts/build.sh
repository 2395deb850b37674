#!/usr/bin/env bash
# Configures and builds.
#
#   scripts/build.sh [--preset NAME] [TARGET...]
#
# Presets: dev (default), release, cpu, cuda, asan, tsan (see CMakePresets.json). Binaries land in build/NAME/bin.
. "$(dirname "$0")/common.sh"
preset=dev
targets=()
while [ $# -gt 0 ]; do
  case $1 in
    --preset) preset=${2:?--preset needs a name}; shift 2 ;;
    --help) usage; exit 0 ;;
    -*) die "unknown option $1 (see --help)" ;;
    *) targets+=("$1"); shift ;;
  esac
done
cd "$ROOT"
# A source file that includes torch takes about 2 GB to compile.
memory_gb=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
jobs=$(nproc)
[ "$jobs" -le $((memory_gb / 2 + 1)) ] || jobs=$((memory_gb / 2 + 1))
log=$BUILD/$preset.configure.log
cmake --preset "$preset" >"$log" 2>&1 || { cat "$log" >&2; die "configuration failed"; }
say "building preset $preset with $jobs jobs"
cmake --build --preset "$preset" -j "$jobs" ${targets:+--target "${targets[@]}"} -- --quiet
