#!/usr/bin/env bash
# The first run on a GPU: what nothing but a GPU can show, in a quarter of an hour.
#
#   scripts/gpu_check.sh pack FOLDER          where there is nvcc and no GPU: builds the preset cuda and puts into FOLDER
#                                             what the other machine needs (programs, tests, data, this script)
#   FOLDER/gpu_check.sh run OUT               on the machine with the GPU: all parts, one after another; logs go to OUT
#   scripts/gpu_check.sh plan                 says what `run` does and how long each part may take, and does nothing
#
# `run` needs the LibTorch of the build (CUDA flavour, same version) on the GPU machine, in LIBTORCH=FOLDER or in python3's
# torch; the packed programs find it through LD_LIBRARY_PATH, which this script sets for them alone. It ends with 0 if
# every part passed. A test that skips itself has failed (DISTILL_REQUIRE_GPU). With two GPUs or more the group of two
# ranks is checked too, one killed in the middle of a step.
set -euo pipefail
say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

programs=(distill-coordinator distill-teacher distill-student distillctl cuda_losses_bench)
tests=(cuda_kernels_test cuda_collective_test cuda_losses_test)

pack() {
  local folder=${1:?pack needs a folder} root build
  root=$(cd "$here/.." && pwd)
  build=$root/build/cuda
  "$root/scripts/build.sh" --preset cuda distill_cuda "${programs[@]}" "${tests[@]}"
  [ -e "$build/bin/libdistill_cuda.so" ] || die "the build has no CUDA plugin; is nvcc installed?"
  readelf -d "$build/bin/libdistill_cuda.so" | grep -q 'NEEDED.*libtorch_cuda' || die "the plugin is not linked to libtorch_cuda.so"
  mkdir -p "$folder/bin" "$folder/tests" "$folder/examples"
  cp "$build"/bin/libdistill_cuda.so "$build"/bin/libprometheus-cpp-core.so.1.0 "$folder/bin/"
  for program in "${programs[@]}"; do cp "$build/bin/$program" "$folder/bin/"; done
  for test in "${tests[@]}"; do cp "$build/tests/$test" "$folder/tests/"; done
  strip "$folder"/bin/* "$folder"/tests/*
  cp "$root/examples/teachers/fashion-resnet20.safetensors" "$folder/examples/"
  mkdir -p "$folder/data"
  [ ! -d /usr/share/datasets/fashion-mnist ] || cp -rL /usr/share/datasets/fashion-mnist "$folder/data/"
  cp "${BASH_SOURCE[0]}" "$folder/"
  say "packed $(du -sm "$folder" | cut -f1) MiB into $folder; on the GPU machine: $folder/gpu_check.sh run OUT"
}

# NAME LIMIT_SECONDS FUNCTION WHAT_IT_SHOWS
parts=(
  "machine       20 part_machine   driver, libraries found, device code for this GPU in the plugin"
  "kernels      120 part_kernels   the fused kernels against the CPU's results"
  "nccl          60 part_nccl      an NCCL group of one rank: connect, reduce, check, abort and end within 2 s"
  "losses       120 part_losses    every loss against itself on the CPU"
  "memcheck      60 part_memcheck  no kernel reads or writes outside its memory"
  "racecheck     60 part_racecheck no kernel races in shared memory"
  "speed        120 part_speed     the kernels against PyTorch's operators and a copy on the device"
  "job          180 part_job       coordinator, teacher and student on the GPU; the same job on the CPU ends alike"
  "devices       20 part_devices   --device cuda:N that is not there is refused, exit code 42"
  "two_ranks    120 part_two_ranks one rank a GPU; one killed in a step: the other is back within 10 s (needs two GPUs)"
)

part_machine() {
  nvidia-smi
  ! ldd "$here/bin/libdistill_cuda.so" | grep 'not found'
  ! command -v cuobjdump >/dev/null || cuobjdump --list-elf --list-ptx "$here/bin/libdistill_cuda.so"
}
run_test() {  # PROGRAM FLAG...: fails on a skip as well
  local program=$1 log
  shift
  log=$OUT/$program.txt
  "$here/tests/$program" "$@" 2>&1 | tee "$log"
  ! grep -q '\[  SKIPPED \]' "$log"
}
part_kernels() { run_test cuda_kernels_test; }
part_nccl() {
  local start=$SECONDS
  NCCL_DEBUG=INFO run_test cuda_collective_test
  [ $((SECONDS - start)) -lt 40 ] || { echo "ending a group takes too long: see the TORCH_NCCL_ settings of the plugin"; return 1; }
}
part_losses() { run_test cuda_losses_test; }
sanitizer() {
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed: left out"; return 0; }
  local log=$OUT/$1.txt
  compute-sanitizer --error-exitcode 9 --tool "$1" "$here/tests/cuda_kernels_test" --gtest_filter='*Tat*' 2>&1 | tee "$log" || {
    grep -q 'Device not supported' "$log" && { echo "the tool does not know this GPU: left out"; return 0; }
    return 1
  }
}
part_memcheck() { sanitizer memcheck; }
part_racecheck() { sanitizer racecheck; }
part_speed() { "$here/bin/cuda_losses_bench" --rounds 5; }

wait_for() {  # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}
start() {  # FOLDER NAME PROGRAM FLAG...
  local folder=$1 name=$2 program=$3
  shift 3
  rm -f "$folder/$name.ready"
  "$here/bin/$program" --ready-file "$folder/$name.ready" "$@" >>"$folder/$name.log" 2>&1 &
  printf '%s\n' $! >"$folder/$name.pid"
  wait_for 60 test -f "$folder/$name.ready" || { tail -n 20 "$folder/$name.log"; return 1; }
}
stop_all() {  # FOLDER...
  local folder pid
  for folder in "$@"; do
    for pid in "$folder"/*.pid; do [ ! -e "$pid" ] || kill "$(cat "$pid")" 2>/dev/null || true; done
  done
  wait
}
# FOLDER STUDENTS DEVICE...: starts a cluster whose student i is on the i-th device.
cluster() {
  local folder=$1 students=$2 i
  shift 2
  mkdir -p "$folder/work"
  start "$folder" coordinator distill-coordinator --listen 127.0.0.1:0 --state-dir "$folder/state"
  DISTILL_COORDINATOR=$(sed -n 's/^address=//p' "$folder/coordinator.ready")
  export DISTILL_COORDINATOR
  start "$folder" teacher distill-teacher --id teacher --device "$1" --coordinator "$DISTILL_COORDINATOR" \
    --model "fashion=$here/examples/fashion-resnet20.safetensors"
  for ((i = 0; i < students; ++i)); do
    start "$folder" "student-$i" distill-student --id "student-$i" --device "${*:$((i + 1)):1}" --data-root "$here/data" \
      --work-dir "$folder/work" --coordinator "$DISTILL_COORDINATOR"
  done
}
job_file() {  # STUDENTS STEPS
  cat <<YAML
name: gpu-check
students: $1
batch_size: 128
student: {arch: cifar_resnet8, width: 8, num_classes: 10, in_channels: 1, image: [28, 28]}
teacher: fashion
data: {path: fashion-mnist, train_size: 60000, train_limit: 12800}
checkpoint: {every: 25}
stages: [{name: all, steps: $2, losses: [{type: cross_entropy}, {type: kd, weight: 1}, {type: cwd, student: layer3, teacher: layer3, adapter: auto}]}]
YAML
}
final_loss() { "$here/bin/distillctl" describe "$1" --output json | sed -n 's/.*"loss": *\([0-9.e+-]*\).*/\1/p' | tail -n 1; }
part_job() {
  local device losses=()
  for device in ${JOB_DEVICES:-cuda:0 cpu}; do
    local folder=$OUT/job-${#losses[@]}
    cluster "$folder" 1 "$device"
    job_file 1 50 >"$folder/job.yaml"
    local job
    job=$("$here/bin/distillctl" submit "$folder/job.yaml" -q)
    "$here/bin/distillctl" watch "$job"
    losses+=("$(final_loss "$job")")
    # An idle worker gives its memory back.
    [ "${device%:*}" != cuda ] || nvidia-smi --query-compute-apps=pid,used_memory --format=csv | tee "$folder/memory.csv"
    stop_all "$folder"
  done
  echo "final loss on the GPU and on the CPU: ${losses[*]}"
  awk -v a="${losses[0]}" -v b="${losses[1]}" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(b > 0 && d <= 0.02 * b) }'
}
part_devices() {
  local code=0
  "$here/bin/distill-student" --coordinator 127.0.0.1:1 --data-root "$here" --work-dir "$OUT/none" --device cuda:63 || code=$?
  [ "$code" = 42 ]
}
part_two_ranks() {
  [ "$(nvidia-smi --list-gpus | wc -l)" -ge 2 ] || { echo "one GPU: left out"; return 0; }
  local folder=$OUT/two-ranks job
  cluster "$folder" 3 cuda:0 cuda:1 cuda:1  # the third takes the killed one's place
  job_file 2 400 >"$folder/job.yaml"
  job=$("$here/bin/distillctl" submit "$folder/job.yaml" -q)
  step() { "$here/bin/distillctl" describe "$job" --output json | sed -n 's/.*"step": *"\{0,1\}\([0-9]*\).*/\1/p' | head -n 1; }
  past() { [ "$(step)" -ge "$1" ] 2>/dev/null; }
  wait_for 40 past 30
  kill -9 "$(cat "$folder/student-1.pid")"
  local killed=$SECONDS
  wait_for 60 grep -q 'generation=2' "$folder/student-0.log"
  echo "back in the next generation after $((SECONDS - killed)) s"
  [ $((SECONDS - killed)) -le 10 ]
  "$here/bin/distillctl" watch "$job"
  stop_all "$folder"
}

plan() {
  local part name limit function what total=0
  for part in "${parts[@]}"; do
    read -r name limit function what <<<"$part"
    declare -F "$function" >/dev/null || die "part $name has no function $function"
    printf '%-10s %4s s  %s\n' "$name" "$limit" "$what"
    total=$((total + limit))
  done
  printf 'at most %s s\n' "$total"
}

run() {
  OUT=${1:?run needs a folder for the logs}
  mkdir -p "$OUT"
  OUT=$(cd "$OUT" && pwd)
  local lib=${LIBTORCH:+$LIBTORCH/lib}
  [ -n "$lib" ] || lib=$(python3 -c 'import torch, os; print(os.path.join(os.path.dirname(torch.__file__), "lib"))') ||
    die "no LibTorch: give LIBTORCH=FOLDER, or install the torch of the build for python3"
  local nvidia
  nvidia=$(find "$lib/../../nvidia" -type d -name lib 2>/dev/null | paste -sd: || true)
  export OUT here DISTILL_REQUIRE_GPU=1 LD_LIBRARY_PATH="$here/bin:$lib${nvidia:+:$nvidia}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  local part name limit function what failed=0 start
  for part in "${parts[@]}"; do
    read -r name limit function what <<<"$part"
    start=$SECONDS
    say "$name: $what"
    # Each part is a shell of its own, so that its limit holds for all that it starts.
    if timeout --kill-after 5 "$limit" bash "$here/gpu_check.sh" part "$function" >"$OUT/$name.log" 2>&1; then
      printf 'PASSED  %-10s %4d s\n' "$name" $((SECONDS - start))
    else
      printf 'FAILED  %-10s %4d s, see %s\n' "$name" $((SECONDS - start)) "$OUT/$name.log"
      failed=$((failed + 1))
    fi
  done | tee "$OUT/summary.txt"
  ! grep -q '^FAILED' "$OUT/summary.txt"
}

case ${1:-} in
  pack) shift; pack "$@" ;;
  run) shift; run "$@" ;;
  plan) plan ;;
  part) trap 'stop_all "$OUT"/*/ 2>/dev/null || true' EXIT; "$2" ;;
  *) usage; exit 2 ;;
esac
