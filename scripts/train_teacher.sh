#!/usr/bin/env bash
# Trains the quick start's teacher again (examples/fashion-teacher.yaml) and puts it into examples/teachers. About 10 minutes on 2 cores.
. "$(dirname "$0")/common.sh"
[ "${1:-}" = --help ] && { usage; exit 0; }
"$ROOT/scripts/setup.sh"
"$ROOT/scripts/build.sh" distill-coordinator distill-student distillctl
. "$ROOT/scripts/local_cluster.sh"
folder=$BUILD/train-teacher
rm -rf "$folder"
start_cluster "$folder" 0 2
"$BIN/distillctl" submit "$ROOT/examples/fashion-teacher.yaml" --request-id teacher --watch
"$BIN/distillctl" results fashion-teacher
mkdir -p "$ROOT/examples/teachers"
cp "$folder"/work/*/student.safetensors "$ROOT/examples/teachers/fashion-resnet20.safetensors"
say "wrote examples/teachers/fashion-resnet20.safetensors"
