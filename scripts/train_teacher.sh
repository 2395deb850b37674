#!/usr/bin/env bash
# Trains a teacher of the examples again and puts it into examples/teachers.
#
#   scripts/train_teacher.sh [fashion]             examples/fashion-teacher.yaml, about 10 minutes on 2 cores
#   scripts/train_teacher.sh cifar10 DATA_ROOT     examples/cifar10-teacher.yaml, about 25 minutes; DATA_ROOT holds cifar10/train.tar.gz
#   scripts/train_teacher.sh camvid DATA_ROOT      examples/camvid-teacher.yaml, about 10 minutes; DATA_ROOT holds camvid/images and camvid/labels
. "$(dirname "$0")/common.sh"
[ "${1:-}" = --help ] && { usage; exit 0; }
data=${1:-fashion} network=resnet20
case $data in
  fashion) CLUSTER_DATA_ROOT=/usr/share/datasets ;;
  cifar10) CLUSTER_DATA_ROOT=${2:?"cifar10 needs the folder that holds cifar10/train.tar.gz"} ;;
  camvid) CLUSTER_DATA_ROOT=${2:?"camvid needs the folder that holds camvid/images and camvid/labels"} network=fcn18 ;;
  *) die "no teacher called $data (see --help)" ;;
esac
"$ROOT/scripts/setup.sh"
"$ROOT/scripts/build.sh" distill-coordinator distill-student distillctl
. "$ROOT/scripts/local_cluster.sh"
folder=$BUILD/train-teacher-$data
rm -rf "$folder"
start_cluster "$folder" 0 2
"$BIN/distillctl" submit "$ROOT/examples/$data-teacher.yaml" --request-id teacher --watch
"$BIN/distillctl" results "$data-teacher"
mkdir -p "$ROOT/examples/teachers"
cp "$folder"/work/*/student.safetensors "$ROOT/examples/teachers/$data-$network.safetensors"
say "wrote examples/teachers/$data-$network.safetensors"
