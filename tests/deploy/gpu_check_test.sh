#!/usr/bin/env bash
# What scripts/gpu_check.sh says it does fits into its quarter of an hour, and the part that trains runs as written: here
# both times on the CPU, with the programs of this build.
#
#   gpu_check_test.sh BIN
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=${1:?the folder of the programs}
bash -n "$root/scripts/gpu_check.sh"
plan=$("$root/scripts/gpu_check.sh" plan)
seconds=$(sed -n 's/^at most \([0-9]*\) s$/\1/p' <<<"$plan")
[ "$seconds" -le 900 ] || { echo "the plan takes $seconds s, more than a quarter of an hour"; exit 1; }
[ "$(wc -l <<<"$plan")" -ge 10 ] || { echo "the plan has lost parts:"; echo "$plan"; exit 1; }

[ -d /usr/share/datasets/fashion-mnist ] || { echo "the package dataset-fashion-mnist is not installed: the job is left out"; exit 0; }
[ -x "$bin/distill-student" ] || { echo "this build has no distill-student: the job is left out"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/data" "$folder/out"
ln -s "$bin" "$folder/bin"
ln -s "$root/examples/teachers" "$folder/examples"
cp -rL /usr/share/datasets/fashion-mnist "$folder/data/"
cp "$root/scripts/gpu_check.sh" "$folder/"
export OUT=$folder/out JOB_DEVICES="cpu cpu"
bash "$folder/gpu_check.sh" part part_job || { tail -n 30 "$folder"/out/*/*.log; exit 1; }
