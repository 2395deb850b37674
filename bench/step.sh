#!/usr/bin/env bash
# Images per second of one student rank: alone, with remote teachers whose compute is free, and with real remote teachers.
#
#   bench/step.sh [ROUNDS]        (through scripts/bench.sh step)
#
# Real processes on loopback; the rank and each teacher have one thread. The three jobs alternate, ROUNDS times (default 3); each
# figure is the median over all progress points but each job's first. Checked first: every job must end SUCCEEDED. "alone" trains on
# labels only; the other two add KD on the logits and CWD on three taps, so the loss's own cost counts as distillation's.
#
# Then, without jobs: the student fed by the free teacher beside the same student with the same losses, fed from tensors in its memory
# (step/local_step.cc): what it costs that features come from elsewhere. For the taps above, and for ResNet-18's at 224 x 224.
. "$(dirname "$0")/../scripts/common.sh"
. "$ROOT/scripts/local_cluster.sh"
rounds=${1:-3}
folder=$BUILD/bench-step
rm -rf "$folder"
start_cluster "$folder" 1 1 "real=$ROOT/examples/teachers/fashion-resnet20.safetensors"
start_service free-teacher free_teacher --coordinator "$DISTILL_COORDINATOR" --model-name free
start_service free224-teacher free_teacher --coordinator "$DISTILL_COORDINATOR" --model-name free224 --arch resnet18 --side 224 --channels 3

job() {  # NAME TEACHER_LINE LOSSES
  cat >"$folder/$1.yaml" <<YAML
name: bench-$1
students: 1
threads: 1
batch_size: 64
student: {arch: cifar_resnet8, width: 16, num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], std: [0.353]}
$2
data: {format: idx, path: fashion-mnist, test_limit: 100, transforms: {train: [horizontal_flip]}}
evaluate: {teacher: false}
log_every: 20
stages:
  - {name: whole, trainable: ["**"], steps: 200, losses: [$3]}
YAML
}
distil='{type: cross_entropy, weight: 0.1}, {type: kd, weight: 0.9}'
for k in 1 2 3; do distil+=", {type: cwd, name: cwd-$k, weight: 2, temperature: 1, student: layer$k, teacher: layer$k, adapter: auto}"; done
job alone "" '{type: cross_entropy}'
job free "teacher: free" "$distil"
job real "teacher: real" "$distil"

for ((round = 1; round <= rounds; ++round)); do
  for kind in alone free real; do
    say "round $round of $rounds: $kind"
    id=$("$BIN/distillctl" submit "$folder/$kind.yaml" --output json | sed -n 's/.*"job_id": *"\([^"]*\)".*/\1/p')
    "$BIN/distillctl" -q watch "$id" >/dev/null || die "the job '$kind' did not succeed: distillctl describe would say why; logs are in $folder"
    "$BIN/distillctl" history "$id" --output json >"$folder/$kind.$round.json"
  done
done
"$VENV/bin/python" - "$folder" "$rounds" <<'PY'
import json, statistics, sys
folder, rounds = sys.argv[1], int(sys.argv[2])
rate = {}
for kind in ("alone", "free", "real"):
    points = []
    for r in range(1, rounds + 1):
        history = json.load(open(f"{folder}/{kind}.{r}.json"))["points"]
        points += [p["images_per_second"] for p in history[1:] if p["images_per_second"] > 0]
    rate[kind] = statistics.median(points)
for kind in ("free", "real"):
    print(f"RESULT step_{kind}_teacher {rate[kind]:.0f} images/s baseline={rate['alone']:.0f} ratio={rate[kind] / rate['alone']:.3f}")
PY
address_of() { sed -n 's/^address=//p' "$folder/$1.ready"; }
# It has one connection and asks nothing until that stands; gRPC looks after such a channel once in so many milliseconds.
export GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS=100
"$BIN/local_step" --case demo --teacher "$(address_of free-teacher)"
"$BIN/local_step" --case resnet18_224 --teacher "$(address_of free224-teacher)" --rounds "$rounds"
