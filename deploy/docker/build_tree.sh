#!/usr/bin/env bash
# Runs inside the build stage of the images: puts the installed tree (bin/, lib/) into FOLDER.
#
#   build_tree.sh SOURCES cpu|cuda FOLDER
#
# Takes SOURCES/prebuilt when the build context brought one, otherwise compiles.
set -euo pipefail
sources=$1 variant=$2 folder=$3
case $variant in cpu | cuda) ;; *) echo "error: VARIANT is cpu or cuda, not '$variant'" >&2; exit 2 ;; esac
if [ -d "$sources/prebuilt" ]; then
  mv "$sources/prebuilt" "$folder"
else
  "$sources/scripts/setup.sh"
  cuda=OFF
  components=(runtime)
  if [ "$variant" = cuda ]; then
    command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] ||
      { echo "error: VARIANT=cuda needs nvcc in the build stage: give --build-arg BUILD_BASE=IMAGE, a Debian 12 with CUDA's compiler, or build outside and use scripts/images.sh --prebuilt" >&2; exit 1; }
    cuda=ON
    components+=(cuda)
  fi
  # A source file that includes torch takes about 2 GB to compile.
  jobs=$(($(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo) / 2 + 1))
  [ "$jobs" -le "$(nproc)" ] || jobs=$(nproc)
  cd "$sources"
  cmake --preset release -DDISTILL_CUDA=$cuda
  cmake --build --preset release -j "$jobs"
  for component in "${components[@]}"; do cmake --install build/release --prefix "$folder" --component "$component" --strip; done
fi
for program in distill-coordinator distillctl distill-data distill-teacher distill-student; do
  [ -x "$folder/bin/$program" ] || { echo "error: $folder/bin/$program is missing from the tree" >&2; exit 1; }
  # Everything is found in the tree and the base, or the image would not start.
  missing=$(ldd "$folder/bin/$program" | grep 'not found' || true)
  [ -z "$missing" ] || { printf 'error: %s needs what is not in the tree:\n%s\n' "$program" "$missing" >&2; exit 1; }
done
