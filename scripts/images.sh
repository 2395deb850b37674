#!/usr/bin/env bash
# Builds the container images distillery/coordinator, distillery/teacher and distillery/student, tagged by variant, and prints their
# sizes.
#
#   scripts/images.sh [OPTION...]
#
#   --variant cpu|cuda    default cpu. cuda compiles with nvcc: give --build-base, or --prebuilt
#   --prebuilt FOLDER     package a tree made by `cmake --install` instead of compiling in the build stage
#   --name NAME           images are called NAME/coordinator and so on (default distillery), for example for a registry
#   --base IMAGE          what the images start from (default debian:bookworm-slim; where that cannot be pulled, the one that
#                         scripts/base_image.sh makes)
#   --build-base IMAGE    what the build stage starts from (default: the base)
#
# Compiling takes a quarter of an hour or more on two cores, and 10 GB of disk while it runs.
. "$(dirname "$0")/common.sh"
variant=cpu name=distillery prebuilt='' base='' build_base=''
while [ $# -gt 0 ]; do
  case $1 in
    --variant) variant=${2:?--variant is cpu or cuda}; shift 2 ;;
    --name) name=${2:?--name needs a name}; shift 2 ;;
    --prebuilt) prebuilt=${2:?--prebuilt needs a folder}; shift 2 ;;
    --base) base=${2:?--base needs an image}; shift 2 ;;
    --build-base) build_base=${2:?--build-base needs an image}; shift 2 ;;
    --help) usage; exit 0 ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
done
case $variant in cpu | cuda) ;; *) die "--variant is cpu or cuda, not '$variant'" ;; esac
command -v docker >/dev/null || die "docker is not installed: scripts/setup.sh --containers installs it"
docker info >/dev/null 2>&1 || die "no Docker engine answers (docker info says why); start it, for example: sudo dockerd &"

mkdir -p "$BUILD"
if [ -z "$base" ]; then
  base=debian:bookworm-slim
  if ! docker image inspect "$base" >/dev/null 2>&1 && ! docker pull -q "$base" >/dev/null 2>&1; then
    say "$base cannot be pulled; using a base made from Debian's packages"
    base=$("$ROOT/scripts/base_image.sh")
  fi
fi
context=$ROOT
origin=source
if [ -n "$prebuilt" ]; then
  origin=prebuilt
  [ -x "$prebuilt/bin/distill-coordinator" ] ||
    die "$prebuilt is no installed tree: bin/distill-coordinator is missing; make one with 'cmake --install BUILD --prefix $prebuilt --strip'"
  # The CUDA part of a tree has no place in the small images.
  case $variant:$([ -e "$prebuilt/lib/libdistill_cuda.so" ] && echo plugin) in
    cuda:) die "$prebuilt holds no CUDA plugin (lib/libdistill_cuda.so); build with nvcc" ;;
    cpu:plugin) die "$prebuilt holds the CUDA plugin too; for --variant cpu install with --component runtime" ;;
  esac
  context=$(mktemp -d "$BUILD/images.XXXXXX")
  trap 'rm -rf "$context"' EXIT
  mkdir -p "$context/deploy"
  cp -a "$ROOT/deploy/docker" "$context/deploy/"
  cp -al "$prebuilt" "$context/prebuilt" 2>/dev/null || { rm -rf "$context/prebuilt" && cp -a "$prebuilt" "$context/prebuilt"; }
fi
log=$BUILD/images-$variant.log
revision=$(git -C "$ROOT" rev-parse HEAD 2>/dev/null || echo unknown)
for target in coordinator teacher student; do
  say "building $name/$target:$variant"
  docker build -f "$context/deploy/docker/Dockerfile" --target $target -t "$name/$target:$variant" --build-arg "BASE=$base" \
    --build-arg "BUILD_BASE=${build_base:-$base}" --build-arg "VARIANT=$variant" --build-arg "ORIGIN=$origin" \
    --build-arg "REVISION=$revision" "$context" >"$log" 2>&1 ||
    { tail -n 40 "$log" >&2; die "building $name/$target:$variant failed; all of its output is in $log"; }
done
# The classic builder leaves the build stage behind. That of a compilation saves time the next time; a copied tree only takes space.
docker image prune --force --filter label=distillery.build=prebuilt >/dev/null
docker image ls --format 'table {{.Repository}}:{{.Tag}}\t{{.Size}}' | grep -E "REPOSITORY|^$name/(coordinator|teacher|student):$variant"
