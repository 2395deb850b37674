#!/bin/bash
# Health check of the images: succeeds when the program answers 200 on a path of its HTTP port, and says why otherwise.
# Shown by `docker inspect` (State.Health.Log). No curl is in the images; bash can open sockets.
#
#   distill-health [PATH]             PATH: /readyz (default) or /healthz; the port is that of DISTILL_HTTP_LISTEN
path=${1:-/readyz}
port=${DISTILL_HTTP_LISTEN##*:}
if ! exec 3<>"/dev/tcp/127.0.0.1/${port:-8080}"; then
  echo "nothing listens on port ${port:-8080} yet"
  exit 1
fi 2>/dev/null
printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$path" >&3
IFS= read -r -t 3 status <&3
while IFS= read -r -t 3 line <&3 && [ "$line" != $'\r' ]; do :; done
IFS= read -r -t 3 body <&3
echo "${status%$'\r'}: $body"
[[ $status == HTTP/1.?\ 200\ * ]]
