#!/usr/bin/env bash
# Makes a table of docs/results.md again: runs the job files behind it with several seeds and prints mean and spread.
#
#   scripts/results.sh TABLE [--seeds N] [--steps N] [--data-root DIR] [--out DIR] [ROW...]
#
#   TABLE      quick-start   examples/fashion-scratch.yaml against fashion-distill.yaml: 3 epochs of Fashion-MNIST
#              fashion       all methods, examples/methods/*.yaml, on Fashion-MNIST
#              cifar10       the same files on CIFAR-10, which needs --data-root
#              camvid        semantic segmentation, examples/segmentation/*.yaml, on CamVid, which needs --data-root
#              policies      strict stage-by-stage distillation with each policy, at a longer budget, on Fashion-MNIST
#   ROW...     only these rows (default: all of the table's)
#   --seeds    how many seeds, 1, 2, ... (default 3)
#   --steps    optimizer steps of a job of the table policies (default 1872)
#   --data-root  folder that holds cifar10/train.tar.gz and cifar10/test.tar.gz, image folders of 32x32 pictures; or
#              camvid/images/{train,val} and camvid/labels/{train,val}, 480x360 pixels, class 11 without label
#   --out      where logs and results are kept (default build/results-TABLE); finished runs are not run again
#
# All rows of a table have the same student and the same number of student steps. On 2 cores a table takes half an hour to
# an hour.
. "$(dirname "$0")/common.sh"
table='' seeds=3 steps='' data_root=/usr/share/datasets out='' chosen=()
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage; exit 0 ;;
    --seeds) seeds=${2:?--seeds needs a number}; shift ;;
    --steps) steps=${2:?--steps needs a number}; shift ;;
    --data-root) data_root=${2:?--data-root needs a folder}; shift ;;
    --out) out=${2:?--out needs a folder}; shift ;;
    -*) die "unknown option $1 (see --help)" ;;
    *) if [ -z "$table" ]; then table=$1; else chosen+=("$1"); fi ;;
  esac
  shift
done
[ -n "$table" ] || { usage; exit 2; }

methods=(scratch kd dkd l2 at cwd channel-transform tat kd-cwd stages-kd-cwd sskd)
model=fashion=$ROOT/examples/teachers/fashion-resnet20.safetensors
file_of() { echo "$ROOT/examples/methods/$1.yaml"; }
settings=()
settings_of() { settings=(); }
case $table in
  quick-start)
    rows=(fashion-scratch fashion-distill)
    file_of() { echo "$ROOT/examples/$1.yaml"; } ;;
  fashion) rows=("${methods[@]}") ;;
  cifar10)
    rows=("${methods[@]}")
    model=cifar10=$ROOT/examples/teachers/cifar10-resnet20.safetensors
    [ -f "$data_root/cifar10/train.tar.gz" ] || die "$data_root/cifar10/train.tar.gz is missing; name the folder with --data-root"
    settings_of() {
      settings=(--set student.in_channels=3 --set 'student.image=[32, 32]' --set 'student.mean=[0.4914, 0.4822, 0.4465]'
        --set 'student.std=[0.2470, 0.2435, 0.2616]' --set data.format=image_folder --set data.path=cifar10
        --set data.train_size=50000 --set 'data.transforms.train=[{pad_crop: {padding: 4}}, horizontal_flip]')
      [ "$1" = scratch ] || settings+=(--set teacher=cifar10)
    } ;;
  camvid)
    rows=(scratch kd cwd cwd-masked cwd-features channel-transform tat)
    model=camvid=$ROOT/examples/teachers/camvid-fcn18.safetensors
    [ -d "$data_root/camvid/images/train" ] || die "$data_root/camvid/images/train is missing; name the folder with --data-root"
    [ -f "${model#*=}" ] || die "the teacher ${model#*=} is not there; make it: scripts/train_teacher.sh camvid $data_root"
    file_of() { echo "$ROOT/examples/segmentation/$1.yaml"; } ;;
  policies)
    # The student is as wide as the teacher: no adapter, the literal method, and blockwise is possible.
    rows=(scratch freeze_previous cumulative_last cumulative_sum joint blockwise)
    file_of() { if [ "$1" = scratch ]; then echo "$ROOT/examples/methods/scratch.yaml"; else echo "$ROOT/examples/methods/sskd.yaml"; fi; }
    settings_of() {
      settings=(--set student.width=16 --set "budget.steps=${steps:-1872}")
      [ "$1" = scratch ] || settings+=(--set "sskd.policy=$1")
    } ;;
  *) die "no table called $table (see --help)" ;;
esac
[ ${#chosen[@]} -eq 0 ] || rows=("${chosen[@]}")
[ -z "$steps" ] || [ "$table" = policies ] || die "--steps is for the table policies; the others' job files have theirs"
for row in "${rows[@]}"; do [ -f "$(file_of "$row")" ] || die "table $table has no row $row"; done
folder=${out:-$BUILD/results-$table}

if [ -z "${DISTILL_BIN:-}" ]; then  # programs built elsewhere may be named
  "$ROOT/scripts/setup.sh"
  "$ROOT/scripts/build.sh" distill-coordinator distill-teacher distill-student distillctl
fi
. "$ROOT/scripts/local_cluster.sh"
mkdir -p "$folder"
rm -rf "$folder/cluster"
CLUSTER_DATA_ROOT=$data_root
start_cluster "$folder/cluster" 2 2 "$model"
for ((seed = 1; seed <= seeds; ++seed)); do
  for row in "${rows[@]}"; do
    job=$(tr _ - <<<"$row")-$seed
    [ -f "$folder/$row-$seed.json" ] && continue
    say "$table, seed $seed of $seeds: $row"
    settings_of "$row"
    "$BIN/distillctl" submit "$(file_of "$row")" --set "seed=$seed" --set "name=$job" "${settings[@]}" --request-id "$job" --watch >"$folder/$row-$seed.log" 2>&1 ||
      die "$row failed; see $folder/$row-$seed.log"
    "$BIN/distillctl" describe "$job" --output json >"$folder/$row-$seed.part"
    mv "$folder/$row-$seed.part" "$folder/$row-$seed.json"
  done
done
"$VENV/bin/python" - "$folder" "$seeds" "${rows[@]}" <<'PY'
import json, statistics, sys
folder, seeds, rows = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
runs = {row: [json.load(open(f"{folder}/{row}-{s}.json")) for s in range(1, seeds + 1)] for row in rows}
def score(job):
    return {m["name"]: m["value"] for m in job["artifacts"]["student_score"]["metrics"]}
# Where pixels have labels, the mean intersection over union is what counts; the accuracy stands beside it.
dense = all("mean_iou" in score(j) for jobs in runs.values() for j in jobs)
measure, key = ("test mIoU", "mean_iou") if dense else ("test accuracy", "top1")
beside = " pixel accuracy, mean |" if dense else ""
print(f"| row | {measure}, mean of {seeds} seeds | standard deviation | each seed |{beside} wall time, mean |")
print("| --- | --- | --- | --- |" + " --- |" * (2 if dense else 1))
for row, jobs in runs.items():
    shares = [100 * score(j)[key] for j in jobs]
    seconds = statistics.mean(j["finished_time"] - j["started_time"] for j in jobs)
    spread = statistics.stdev(shares) if seeds > 1 else 0
    accuracy = statistics.mean(100 * score(j)["pixel_accuracy" if dense else "top1"] for j in jobs)
    print(f"| `{row}` | {statistics.mean(shares):.2f} % | {spread:.2f} | {', '.join(f'{a:.2f}' for a in shares)} |" +
          (f" {accuracy:.2f} % |" if dense else "") + f" {seconds:.0f} s |")
parameters = int(runs[rows[0]][0]["artifacts"]["student_parameters"])
print(f"\nStudent: {parameters:,} parameters.")
PY
