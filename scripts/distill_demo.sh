#!/usr/bin/env bash
# The main job, end to end, on this machine: starts a coordinator, two teacher servers and two student ranks as separate processes on
# loopback, distils a student on Fashion-MNIST, trains the same student alone for comparison, and prints both beside the teacher.
# Everything is stopped at the end; logs and the students' files stay.
#
#   distill-demo [--data FOLDER] [--out FOLDER] [--steps N]
#   distill-demo --photos FOLDER [--out FOLDER] [--steps N]       another demo: photographs of your own, without labels (see its --help)
#
#   --data FOLDER   holds Fashion-MNIST's four files (default /usr/share/datasets/fashion-mnist, Debian's dataset-fashion-mnist)
#   --out FOLDER    where logs and students go (default ./distill-demo); one of an earlier run is replaced
#   --steps N       N optimizer steps for each stage of the distillation and as many altogether for the student alone, instead of
#                   those of the job files: a quick look, not a result
#
# Installed by the wheel as distill-demo; scripts/demo.sh runs it after its build.
. "$(dirname "$0")/common.sh"
for argument; do
  [ "$argument" != --photos ] || exec bash "$ROOT/scripts/photos_demo.sh" "$@"
done
data=/usr/share/datasets/fashion-mnist out=distill-demo steps=''
while [ $# -gt 0 ]; do
  case $1 in
    --data) data=${2:?--data needs a folder}; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --steps) steps=${2:?--steps needs a number}; shift 2 ;;
    --help) usage; exit 0 ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
done
[[ $steps =~ ^([1-9][0-9]{0,5})?$ ]] || die "--steps is a number from 1 to 999999, not '$steps'"
for file in train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte; do
  [ -r "$data/$file" ] || [ -r "$data/$file.gz" ] || die "Fashion-MNIST is not in $data: $file.gz is missing. Get it (30 MB):
  on Debian as root   apt-get install dataset-fashion-mnist
  without root        apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion
                      then give --data fashion/usr/share/datasets/fashion-mnist
  elsewhere           take the four .gz files in folder data/fashion of https://github.com/zalandoresearch/fashion-mnist
                      and give --data with the folder you put them into"
done
data=$(realpath "$data")
mark=.made-by-distill-demo
if [ -e "$out" ]; then
  [ -d "$out" ] && { [ -e "$out/$mark" ] || [ -z "$(ls -A "$out")" ]; } || die "$out is there and was not made by this program; name another folder with --out"
  find "$out" -mindepth 1 -delete
fi
mkdir -p "$out"
out=$(realpath "$out")
touch "$out/$mark"
. "$(dirname "$0")/local_cluster.sh"

# Students read below a data root; the job names the folder there.
CLUSTER_DATA_ROOT=$(dirname "$data")
folder=$(basename "$data")
settings=(--set "data.path='${folder//\'/\'\'}'")
distill=() scratch=()
if [ -n "$steps" ]; then
  for stage in 0 1 2 3; do distill+=(--set "stages.$stage.steps=$steps"); done
  scratch=(--set "budget.steps=$((4 * steps))")
fi
started=$SECONDS
say "starting 1 coordinator, 2 teachers and 2 students on loopback (logs in $out)"
start_cluster "$out" 2 2 "fashion=$ROOT/examples/teachers/fashion-resnet20.safetensors"
ctl=$BIN/distillctl
"$ctl" fleet
say "job 1 of 2: distil the student stage by stage (examples/fashion-distill.yaml)"
"$ctl" submit "$ROOT/examples/fashion-distill.yaml" "${settings[@]}" "${distill[@]}" --request-id demo-distill --watch
say "job 2 of 2: the same student alone, same number of steps (examples/fashion-scratch.yaml)"
"$ctl" submit "$ROOT/examples/fashion-scratch.yaml" "${settings[@]}" "${scratch[@]}" --request-id demo-scratch --watch
echo
"$ctl" results fashion-scratch fashion-distill
stop_cluster
say "done in $((SECONDS - started)) s; the students' files are in $out/work. Next: change a copy of $ROOT/examples/fashion-distill.yaml"
