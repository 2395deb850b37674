#!/usr/bin/env bash
# scripts/make_certs.sh: what it makes verifies, names the right hosts, and is private; what it refuses stays untouched.
set -euo pipefail
MAKE_CERTS=$(cd "$(dirname "$0")/../.." && pwd)/scripts/make_certs.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

failures=0
check() {  # WHAT COMMAND...
  local what=$1
  shift
  if "$@" >"$folder/output" 2>&1; then return; fi
  printf 'FAILED: %s: %s\n' "$what" "$*"
  sed 's/^/    /' "$folder/output"
  failures=$((failures + 1))
}
refuses() {  # WHAT MESSAGE ARGUMENT...: exits with 1 and says MESSAGE
  local what=$1 message=$2 code=0
  shift 2
  "$MAKE_CERTS" "$@" >"$folder/said" 2>&1 || code=$?
  check "$what: exit code $code, wanted 1" [ "$code" = 1 ]
  check "$what: says '$message'" grep -F -- "$message" "$folder/said"
}
mode() { [ "$(stat -c %a "$2")" = "$1" ]; }
sans() { openssl x509 -in "$1" -noout -ext subjectAltName | tail -n +2 | tr -d ' '; }
# Days from now to the end, rounded.
days_left() { echo $((($(date -d "$(openssl x509 -in "$1" -noout -enddate | cut -d= -f2)" +%s) - $(date +%s) + 43200) / 86400)); }
differ() { ! cmp -s "$1" "$2"; }

check 'prints help' grep -q 'make_certs.sh --renew' <("$MAKE_CERTS" --help)
"$MAKE_CERTS" --days 30 certs coordinator=coordinator.example,10.0.0.5,fd00::7 'teacher=*.teachers.example' plain 2>/dev/null
for name in coordinator teacher plain; do
  check "$name verifies" openssl verify -x509_strict -purpose sslserver -CAfile certs/ca.crt "certs/$name/tls.crt"
  check "$name serves as client certificate too" openssl verify -purpose sslclient -CAfile certs/ca.crt "certs/$name/tls.crt"
  check "$name is valid for 30 days" [ "$(days_left "certs/$name/tls.crt")" = 30 ]
  check "$name's key belongs to it" cmp <(openssl pkey -in "certs/$name/tls.key" -pubout) <(openssl x509 -in "certs/$name/tls.crt" -noout -pubkey)
  check "$name's key is private" mode 600 "certs/$name/tls.key"
done
check 'hosts of coordinator' [ "$(sans certs/coordinator/tls.crt)" = \
  'DNS:coordinator.example,IPAddress:10.0.0.5,IPAddress:FD00:0:0:0:0:0:0:7,DNS:localhost,IPAddress:127.0.0.1,IPAddress:0:0:0:0:0:0:0:1' ]
check 'hosts of plain' [ "$(sans certs/plain/tls.crt)" = 'DNS:plain,DNS:localhost,IPAddress:127.0.0.1,IPAddress:0:0:0:0:0:0:0:1' ]
check 'wildcard covers a name' openssl verify -CAfile certs/ca.crt -verify_hostname a1.teachers.example certs/teacher/tls.crt
check 'wildcard covers no other' bash -c '! openssl verify -CAfile certs/ca.crt -verify_hostname teachers.other certs/teacher/tls.crt'
check 'a wrong authority does not verify' bash -c "'$MAKE_CERTS' other x && ! openssl verify -CAfile other/ca.crt certs/plain/tls.crt"
check 'the authority is private' mode 600 certs/ca.key
check 'the folder is private' mode 700 certs
check 'the token is private' mode 600 certs/token
check 'the token has 64 hexadecimal digits in one line' grep -qxE '[0-9a-f]{64}' certs/token
check 'tokens differ' differ certs/token other/token
check 'nothing else is left' [ "$(cd certs && find . -type f | sort | tr '\n' ' ')" = \
  './ca.crt ./ca.key ./coordinator/tls.crt ./coordinator/tls.key ./plain/tls.crt ./plain/tls.key ./teacher/tls.crt ./teacher/tls.key ./token ' ]

cp -a certs before
refuses 'an authority is not overwritten' '--renew' certs coordinator
mkdir -m 755 used
touch used/file
refuses 'a folder with other files' 'not empty' used x
check 'its mode stays' mode 755 used
refuses 'no names' 'no NAME given' fresh
refuses 'a bad host' "'a b' is neither a host name nor an IP address" fresh 'x=good.example,a b'
refuses 'a line break between hosts' 'line break' fresh $'x=good.example\nother.example'
refuses 'certificates that outlive the new authority' 'outlive their authority of 3650' --days 3651 fresh x
refuses 'a bad name' "'../x' cannot be a NAME" fresh ../x
refuses 'bad days' "'0'" --days 0 fresh x
refuses 'an unknown option' '--wat' --wat fresh x
refuses 'renewal of nothing' 'not there to renew from' --renew fresh
refuses 'a certificate that outlives the authority' 'ends before' --renew --days 4000 certs
check 'refusals made no folder' [ ! -e fresh ]
check 'refusals changed nothing' diff -r before certs

"$MAKE_CERTS" --renew --days 60 certs 2>/dev/null
check 'renewal keeps the authority' cmp before/ca.crt certs/ca.crt
check 'renewal keeps the token' cmp before/token certs/token
for name in coordinator teacher plain; do
  check "renewal changes $name's key" differ "before/$name/tls.key" "certs/$name/tls.key"
  check "renewed $name verifies" openssl verify -CAfile certs/ca.crt "certs/$name/tls.crt"
  check "renewed $name has the same hosts" [ "$(sans "before/$name/tls.crt")" = "$(sans "certs/$name/tls.crt")" ]
  check "renewed $name is valid for 60 days" [ "$(days_left "certs/$name/tls.crt")" = 60 ]
done
"$MAKE_CERTS" --renew --new-token certs plain=new.example 2>/dev/null
check 'a new token' differ before/token certs/token
check 'new hosts' grep -q 'DNS:new.example' <(sans certs/plain/tls.crt)

"$MAKE_CERTS" --containers forcontainers coordinator 2>/dev/null
check 'for containers: the folder is private' mode 700 forcontainers
if [ "$(id -u)" = 0 ]; then
  check 'for containers: the key belongs to their user' [ "$(stat -c %u:%a forcontainers/coordinator/tls.key)" = 10001:600 ]
  check 'for containers: the token belongs to their user' [ "$(stat -c %u:%a forcontainers/token)" = 10001:600 ]
else
  check 'for containers: the key can be read' mode 644 forcontainers/coordinator/tls.key
  check 'for containers: the token can be read' mode 644 forcontainers/token
fi
[ $failures = 0 ] || { echo "$failures checks failed"; exit 1; }
echo 'all checks passed'
