#!/usr/bin/env bash
# Formats the C++ sources with clang-format 14, Debian 12's (other versions format otherwise).
#
#   scripts/format.sh            formats
#   scripts/format.sh --check    says which lines would change, and which comments are too wide, and fails if any is; a
#                                test of scripts/test.sh
#
# Exit code 3: there is no clang-format 14 here. Comments stay as they are written (ReflowComments in .clang-format): a
# formatter knows no tables and no equations. What it moves all the same goes between "// clang-format off" and "on",
# where a table may also be wider than the column limit; other comments, those of Python and proto files too, may not.
. "$(dirname "$0")/common.sh"
case ${1:-} in
  '') mode=(-i) ;;
  --check) mode=(--dry-run --Werror) ;;
  --help) usage; exit 0 ;;
  *) die "unknown argument $1 (see --help)" ;;
esac
cd "$ROOT"
for tool in clang-format-14 clang-format none; do
  case $("$tool" --version 2>/dev/null) in *'version 14.'*) break ;; esac
done
if [ "$tool" = none ]; then
  say "clang-format 14 is not installed: apt-get install clang-format on Debian 12"
  exit 3
fi
find bench common coordinator student_worker teacher_server tests -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \
  | sort | xargs -P "$(nproc)" -n 32 "$tool" "${mode[@]}" --style=file
[ "${1:-}" = --check ] || exit 0

columns=$(sed -n 's/^ColumnLimit: //p' .clang-format)
wide=$(find bench common coordinator deploy examples proto python scripts student_worker teacher_server tests \
    \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' -o -name '*.proto' -o -name '*.py' \) -print0 \
  | sort -z | LC_ALL=C.UTF-8 xargs -0 sed -s -n -E \
    "/clang-format off/,/clang-format on/!{/^ *(\/\/|#)/{/^.{$((columns + 1))}/{F;=;p}}}" | paste -d: - - -)
[ -z "$wide" ] || die "comments of more than $columns columns:
$wide"
