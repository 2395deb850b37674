#!/usr/bin/env bash
# Installs what the build needs: Debian packages (apt), and LibTorch in a virtual environment inside build/.
#
#   scripts/setup.sh                 what the programs and tests need; quick when everything is there
#   scripts/setup.sh --containers    also what builds and tests the container images: a Docker engine, Compose, debootstrap
#                                    (scripts/apt-packages-containers.txt). None of them is left running that did not run before.
#
# Nothing is installed outside apt and the build folder. Prometheus' promtool, which the tests use, is unpacked into build/tools
# rather than installed, because the Debian package would start a server.
. "$(dirname "$0")/common.sh"
containers=no
case ${1:-} in
  '') ;;
  --containers) containers=yes ;;
  --help) usage; exit 0 ;;
  *) die "unknown argument $1 (see --help)" ;;
esac

command -v apt-get >/dev/null || die "this script installs Debian packages; on another system install the packages of scripts/apt-packages.txt yourself"
install_packages() {  # FILE: those of its packages that are missing
  local packages package missing=()
  mapfile -t packages < <(grep -v '^#' "$1")
  for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing Debian packages: ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
install_packages "$ROOT/scripts/apt-packages.txt"
if [ $containers = yes ]; then
  # Debian starts a package's service when it is installed, unless this file says no. The tests start and stop their own engine.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
    as_root chmod 0755 $policy
    trap 'as_root rm -f $policy' EXIT
  fi
  install_packages "$ROOT/scripts/apt-packages-containers.txt"
fi

mkdir -p "$BUILD"
pins=$(sha256sum "$ROOT/scripts/requirements.txt" | cut -d' ' -f1)
if [ "$(cat "$VENV/.pins" 2>/dev/null)" != "$pins" ]; then
  say "installing LibTorch (the PyPI wheel torch, about 3 GB with its CUDA libraries) into build/venv"
  [ -x "$VENV/bin/python" ] || python3 -m venv "$VENV"
  "$VENV/bin/python" -m pip install -q --disable-pip-version-check -r "$ROOT/scripts/requirements.txt"
  echo "$pins" >"$VENV/.pins"
fi

if [ ! -x "$TOOLS/usr/bin/promtool" ]; then
  say "unpacking promtool and prometheus (for the tests) into build/tools"
  mkdir -p "$TOOLS/deb"
  (cd "$TOOLS/deb" && apt-get download -qq prometheus 2>/dev/null) || {
    as_root apt-get update -qq
    (cd "$TOOLS/deb" && apt-get download -qq prometheus)
  }
  dpkg -x "$TOOLS"/deb/prometheus_*.deb "$TOOLS"
fi
say "set-up is complete"
