#!/usr/bin/env bash
# Draws the Grafana dashboards of deploy/grafana from a Prometheus, as PNG files: for the docs, or where there is no Grafana.
#
#   scripts/render_dashboards.sh [--last 1h] [--end UNIX_TIME] URL FOLDER [DASHBOARD...]
#   scripts/render_dashboards.sh --last 15m http://127.0.0.1:9090 /tmp/pictures step teacher
#
# DASHBOARD is fleet, job, teacher, wire or step; all of them by default. Matplotlib is installed into build/pictures-venv.
. "$(dirname "$0")/common.sh"
case ${1:---help} in --help) usage; exit 0 ;; esac
venv=$BUILD/pictures-venv
pins=$(sha256sum "$ROOT/scripts/requirements-pictures.txt" | cut -d' ' -f1)
if [ "$(cat "$venv/.pins" 2>/dev/null)" != "$pins" ]; then
  say "installing matplotlib into build/pictures-venv"
  [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$ROOT/scripts/requirements-pictures.txt"
  echo "$pins" >"$venv/.pins"
fi
exec "$venv/bin/python" "$ROOT/scripts/render_dashboards.py" "$@"
