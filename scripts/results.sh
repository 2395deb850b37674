#!/usr/bin/env bash
# Makes a table of docs/results.md again: runs the job files behind it with several seeds and prints mean and spread.
#
#   scripts/results.sh TABLE [SEEDS]        TABLE: fashion; SEEDS: how many (default 3, seeds 1, 2, ...)
#
# All rows of a table have the same student and the same number of student steps. About 4 minutes a seed on 2 cores.
. "$(dirname "$0")/common.sh"
case ${1:---help} in
  --help) usage; exit 0 ;;
  fashion) rows=(fashion-scratch fashion-distill) ;;
  *) die "no table called $1 (see --help)" ;;
esac
seeds=${2:-3}
"$ROOT/scripts/setup.sh"
"$ROOT/scripts/build.sh" distill-coordinator distill-teacher distill-student distillctl
. "$ROOT/scripts/local_cluster.sh"
folder=$BUILD/results-$1
rm -rf "$folder"
start_cluster "$folder" 2 2 "fashion=$ROOT/examples/teachers/fashion-resnet20.safetensors"
for ((seed = 1; seed <= seeds; ++seed)); do
  for row in "${rows[@]}"; do
    say "seed $seed of $seeds: $row"
    "$BIN/distillctl" submit "$ROOT/examples/$row.yaml" --set "seed=$seed" --set "name=$row-$seed" --request-id "$row-$seed" --watch >"$folder/$row-$seed.log"
    "$BIN/distillctl" describe "$row-$seed" --output json >"$folder/$row-$seed.json"
  done
done
"$VENV/bin/python" - "$folder" "$seeds" "${rows[@]}" <<'PY'
import json, statistics, sys
folder, seeds, rows = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
print("| job | parameters | test accuracy, mean of %d seeds | standard deviation | each seed | wall time, mean |" % seeds)
print("| --- | --- | --- | --- | --- | --- |")
teacher = 0
for row in rows:
    jobs = [json.load(open(f"{folder}/{row}-{s}.json")) for s in range(1, seeds + 1)]
    accuracy = [100 * j["artifacts"]["student_accuracy"] for j in jobs]
    teacher = max([teacher] + [100 * j["artifacts"]["teacher_accuracy"] for j in jobs])
    seconds = statistics.mean(j["finished_time"] - j["started_time"] for j in jobs)
    spread = statistics.stdev(accuracy) if seeds > 1 else 0
    print(f"| `{row}` | {int(jobs[0]['artifacts']['student_parameters']):,} | {statistics.mean(accuracy):.2f} % | {spread:.2f} | "
          f"{', '.join(f'{a:.2f}' for a in accuracy)} | {seconds:.0f} s |")
print(f"\nTeacher: {teacher:.2f} %.")
PY
