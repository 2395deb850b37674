#!/usr/bin/env bash
# The main job, end to end, on this machine: sets up, builds, and runs scripts/distill_demo.sh, which starts a coordinator, two teacher
# servers and two student ranks on loopback, distils a student on Fashion-MNIST, trains the same student alone for comparison, and
# prints both beside the teacher. The students' files stay in build/demo.
#
#   scripts/demo.sh
. "$(dirname "$0")/common.sh"
[ "${1:-}" = --help ] && { usage; exit 0; }
[ $# = 0 ] || die "unknown argument $1 (see --help)"
"$ROOT/scripts/setup.sh"
"$ROOT/scripts/build.sh" distill-coordinator distill-teacher distill-student distillctl
rm -rf "$BUILD/demo"
"$ROOT/scripts/distill_demo.sh" --out "$BUILD/demo"
say "README.md, section 'Your own job', goes on from here"
