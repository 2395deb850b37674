#!/usr/bin/env bash
# Formats the C++ sources with clang-format (or, with --check, says which files would change and fails).
. "$(dirname "$0")/common.sh"
command -v clang-format >/dev/null || die "clang-format is not installed: apt-get install clang-format"
cd "$ROOT"
mapfile -t files < <(git ls-files '*.h' '*.cc' '*.cu')
if [ "${1:-}" = --check ]; then
  clang-format --dry-run --Werror "${files[@]}"
else
  clang-format -i "${files[@]}"
fi
