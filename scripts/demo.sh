#!/usr/bin/env bash
# The main job, end to end, on this machine: sets up, builds, starts a coordinator, two teacher servers and two student ranks as
# separate processes on loopback, distils a student on Fashion-MNIST, trains the same student alone for comparison, and prints
# both beside the teacher. Everything is stopped at the end; the students' files stay in build/demo.
#
#   scripts/demo.sh
. "$(dirname "$0")/common.sh"
[ "${1:-}" = --help ] && { usage; exit 0; }
[ $# = 0 ] || die "unknown argument $1 (see --help)"
started=$SECONDS
"$ROOT/scripts/setup.sh"
"$ROOT/scripts/build.sh" distill-coordinator distill-teacher distill-student distillctl
. "$ROOT/scripts/local_cluster.sh"

folder=$BUILD/demo
rm -rf "$folder"
say "starting 1 coordinator, 2 teachers and 2 students on loopback (logs in build/demo)"
start_cluster "$folder" 2 2 "fashion=$ROOT/examples/teachers/fashion-resnet20.safetensors"
ctl=$BIN/distillctl
"$ctl" fleet
say "job 1 of 2: distil the student stage by stage (examples/fashion-distill.yaml)"
"$ctl" submit "$ROOT/examples/fashion-distill.yaml" --request-id demo-distill --watch
say "job 2 of 2: the same student alone, same number of steps (examples/fashion-scratch.yaml)"
"$ctl" submit "$ROOT/examples/fashion-scratch.yaml" --request-id demo-scratch --watch
echo
"$ctl" results fashion-scratch fashion-distill
stop_cluster
say "done in $((SECONDS - started)) s; next: change examples/fashion-distill.yaml and read README.md, section 'Your own job'"
