#!/usr/bin/env bash
# Checks what deploy/ holds, offline and strictly: that the overlays of deploy/kubernetes build and are valid for several versions
# of Kubernetes, Prometheus' configuration and rules, the compose files. Says at the end what was not checked, and why.
#
#   scripts/check_deploy.sh             checks
#   scripts/check_deploy.sh --render    writes deploy/kubernetes/rendered anew, then checks
#
# Needs build/venv and build/tools (scripts/setup.sh). Kustomize is taken from kubectl (1.27 or newer) or kustomize (5 or newer).
# Debian 12 has neither (its kubectl is 1.20): without them the committed renderings are validated, and a digest in them tells
# whether they were made from the overlays that are here.
. "$(dirname "$0")/common.sh"
render=()
while [ $# -gt 0 ]; do
  case $1 in
    --render) render=(--render); shift ;;
    --help) usage; exit 0 ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
done
failed=()
not_checked=()
checks() {  # WHAT COMMAND...
  local what=$1
  shift
  say "$what"
  "$@" || failed+=("$what")
}

kustomize=
if kubectl version --client 2>/dev/null | grep -q '^Kustomize Version: v[5-9]'; then kustomize="kubectl kustomize"
elif kustomize version 2>/dev/null | grep -q 'v[5-9]\.'; then kustomize="kustomize build"
else not_checked+=("that the overlays build: no kubectl 1.27 or kustomize 5 here (the renderings are of these sources, by their digest)")
fi
[ -z "${render[*]}" ] || [ -n "$kustomize" ] || die "--render needs kubectl 1.27 or newer, or kustomize 5 or newer, in PATH"
[ -x "$VENV/bin/python" ] || die "build/venv is missing: run scripts/setup.sh"
checks "deploy/kubernetes: overlays, schemas" \
  "$VENV/bin/python" "$ROOT/tests/deploy/kubernetes_schema.py" "${render[@]}" ${kustomize:+--kustomize "$kustomize"}

promtool=$TOOLS/usr/bin/promtool
if [ ! -d "$ROOT/deploy/prometheus" ]; then not_checked+=("Prometheus: no deploy/prometheus")
elif [ ! -x "$promtool" ]; then die "build/tools has no promtool: run scripts/setup.sh"
else
  checks "deploy/prometheus: configuration and rules" "$promtool" check config --lint=all --lint-fatal "$ROOT/deploy/prometheus/prometheus.yml"
fi

mapfile -t compose_files < <(find "$ROOT/deploy/compose" -maxdepth 1 -name 'docker-compose*.yml' 2>/dev/null | sort)
if [ ${#compose_files[@]} = 0 ]; then not_checked+=("compose: no deploy/compose")
else
  compose=()
  if docker compose version >/dev/null 2>&1; then compose=(docker compose)
  elif command -v docker-compose >/dev/null; then compose=(docker-compose)
  fi
  if [ ${#compose[@]} = 0 ]; then not_checked+=("compose files: no docker-compose here (scripts/setup.sh --containers installs it)")
  else
    for file in "${compose_files[@]}"; do
      checks "${file#"$ROOT/"}: ${compose[*]} config" "${compose[@]}" -f "$file" config --quiet
    done
  fi
fi

for what in ${not_checked[@]+"${not_checked[@]}"}; do say "not checked: $what"; done
[ ${#failed[@]} = 0 ] || die "$(printf 'failed: %s; ' "${failed[@]}")"
say "deploy/ is in order"
