#!/usr/bin/env bash
# Makes what a cluster needs to be safe on a network: a certificate authority, a certificate for each server, and the token.
#
#   scripts/make_certs.sh [OPTION...] FOLDER NAME[=HOST,HOST...]...
#   scripts/make_certs.sh --renew [OPTION...] FOLDER [NAME[=HOST,HOST...]...]
#
#   scripts/make_certs.sh certs coordinator=coordinator.example,10.0.0.5 teacher='*.teachers.example'
#   scripts/make_certs.sh --renew --days 90 certs
#
# FOLDER gets  ca.crt ca.key        the authority; programs read ca.crt (--tls-ca), ca.key stays with you
#              NAME/tls.crt tls.key one pair for each NAME (--tls-cert, --tls-key)
#              token                one line of 64 random hexadecimal digits (--token-file)
# A certificate is valid for its HOSTs (names, *.names or IP addresses; NAME itself when none is given) and for localhost,
# 127.0.0.1 and ::1. Keys and token can be read by you alone (mode 0600, folders 0700).
#
#   --days N      days that certificates are valid (default 365)
#   --ca-days N   days that the authority is valid (default 3650)
#   --renew       keep authority and token, make new certificates: for all NAMEs in FOLDER with the hosts they have, or for those
#                 given. Programs read the files when they start: restart them one by one.
#   --new-token   with --renew: a new token too. All programs must then be restarted together.
#   --containers  let the user of the container images (uid 10001) read keys and token: as root they are given to it; otherwise
#                 they get mode 0644 inside FOLDER, which only you can enter
#
# Without --renew a FOLDER that holds an authority already is refused.
. "$(dirname "$0")/common.sh"

days=365 ca_days=3650 renew=no new_token=no containers=no
CONTAINER_USER=10001
positive() { [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || die "$1 wants a number of days from 1 to 99999, not '$2'"; }
while [ $# -gt 0 ]; do
  case $1 in
    --days) days=${2:?--days needs a number}; positive --days "$days"; shift 2 ;;
    --ca-days) ca_days=${2:?--ca-days needs a number}; positive --ca-days "$ca_days"; shift 2 ;;
    --renew) renew=yes; shift ;;
    --new-token) new_token=yes; shift ;;
    --containers) containers=yes; shift ;;
    --help) usage; exit 0 ;;
    -*) die "unknown option $1 (see --help)" ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || die "no FOLDER given (see --help)"
command -v openssl >/dev/null || die "openssl is not installed: apt-get install openssl"
folder=$1
shift
case $renew in
  no)
    [ $# -gt 0 ] || die "no NAME given: each server needs one, for example 'coordinator=coordinator.example' (see --help)"
    [ $new_token = no ] || die "--new-token goes with --renew"
    if [ -e "$folder/ca.crt" ] || [ -e "$folder/ca.key" ]; then
      die "$folder holds an authority already; use --renew for new certificates from it, or another folder"
    fi
    # The folder is made private, so it must not be somebody else's.
    [ -z "$(ls -A "$folder" 2>/dev/null)" ] || die "$folder exists and is not empty; give a folder of its own"
    [ "$days" -le "$ca_days" ] || die "certificates of $days days would outlive their authority of $ca_days; give fewer --days, or more --ca-days"
    ;;
  yes)
    if [ ! -f "$folder/ca.crt" ] || [ ! -f "$folder/ca.key" ]; then
      die "$folder/ca.crt and ca.key are not there to renew from; run without --renew"
    fi
    openssl x509 -in "$folder/ca.crt" -noout -checkend $((days * 86400)) >/dev/null ||
      die "the authority $folder/ca.crt ends before the new certificates would ($(openssl x509 -in "$folder/ca.crt" -noout -enddate)); \
use fewer --days, or make a new authority in another folder and give it to all programs"
    ;;
esac

# "DNS:a,IP:1.2.3.4,..." of a comma-separated list of hosts, with loopback added.
alternative_names() {
  local host names=() ip4='^[0-9]+(\.[0-9]+){3}$' name='^(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?$'
  IFS=, read -ra hosts <<<"$1,localhost,127.0.0.1,::1"
  for host in "${hosts[@]}"; do
    if [[ $host =~ $ip4 || $host == *:* ]]; then host=IP:$host
    elif [[ $host =~ $name ]]; then host=DNS:$host
    else die "'$host' is neither a host name nor an IP address"
    fi
    [[ ,$(IFS=,; echo "${names[*]-}"), == *",$host,"* ]] || names+=("$host")
  done
  (IFS=,; echo "${names[*]}")
}

# The hosts of an existing certificate, as the arguments give them.
hosts_of() {
  openssl x509 -in "$1" -noout -ext subjectAltName | sed -n '2,$s/ *\(DNS:\|IP Address:\)//gp' | tr -d ' ' | sed 's/\b0:0:0:0:0:0:0:1\b/::1/'
}

for argument; do
  # Lists of hosts are read by the line: what follows a line break would be lost, loopback included.
  [[ $argument != *[[:cntrl:]]* ]] || die "${argument@Q} holds a line break or another control character"
  [[ ${argument%%=*} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "'${argument%%=*}' cannot be a NAME: letters, digits, '.', '-' and '_' only"
  alternative_names "${argument#*=}" >/dev/null
done
umask 077
mkdir -p "$folder"
chmod 0700 "$folder"
work=$(mktemp -d "$folder/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT

# A key and a certificate for it, signed by the authority; complete before they replace what is there.
make_pair() {  # NAME HOSTS
  local name=$1 names subject=$1
  names=$(alternative_names "$2")
  openssl ecparam -genkey -name prime256v1 -noout -out "$work/tls.key"
  openssl req -new -key "$work/tls.key" -subj "/O=distillery/CN=${subject:0:64}" -out "$work/request"
  printf '%s\n' 'basicConstraints = critical, CA:false' 'keyUsage = critical, digitalSignature' 'extendedKeyUsage = serverAuth, clientAuth' \
    "subjectAltName = $names" 'subjectKeyIdentifier = hash' 'authorityKeyIdentifier = keyid' >"$work/extensions"
  openssl x509 -req -in "$work/request" -CA "$authority/ca.crt" -CAkey "$authority/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
    -days "$days" -sha256 -extfile "$work/extensions" -out "$work/tls.crt" 2>"$work/log" ||
    { cat "$work/log" >&2; die "openssl could not make a certificate for $name ($names)"; }
  chmod 0644 "$work/tls.crt"
  mkdir -p "$work/out/$name"
  mv "$work/tls.key" "$work/tls.crt" "$work/out/$name/"
}

authority=$folder
if [ $renew = no ]; then
  authority=$work/out
  mkdir -p "$authority"
  openssl ecparam -genkey -name prime256v1 -noout -out "$authority/ca.key"
  openssl req -x509 -new -key "$authority/ca.key" -sha256 -days "$ca_days" -subj "/O=distillery/CN=distillery authority $(openssl rand -hex 4)" \
    -addext 'basicConstraints = critical, CA:true, pathlen:0' -addext 'keyUsage = critical, keyCertSign, cRLSign' -out "$authority/ca.crt"
  chmod 0644 "$authority/ca.crt"
fi
if [ $# = 0 ]; then
  for certificate in "$folder"/*/tls.crt; do
    [ -f "$certificate" ] || die "$folder holds no certificates to renew; give NAMEs"
    set -- "$@" "$(basename "$(dirname "$certificate")")=$(hosts_of "$certificate")"
  done
fi
for argument; do make_pair "${argument%%=*}" "${argument#*=}"; done
mkdir -p "$work/out"
if [ $renew = no ] || [ $new_token = yes ]; then openssl rand -hex 32 >"$work/out/token"; fi

# Everything is made; now it may replace what is there, each file in one step.
(cd "$work/out" && find . -type d) | while read -r sub; do mkdir -p "$folder/$sub"; done
(cd "$work/out" && find . -type f) | while read -r file; do mv -f "$work/out/$file" "$folder/$file"; done
if [ $containers = yes ]; then
  # A container sees the mounted files alone; on the host they stay inside FOLDER, which nobody else can enter.
  find "$folder" -mindepth 1 -maxdepth 1 -type d ! -name '.new.*' -exec chmod 0755 {} +
  mapfile -t secrets < <(find "$folder" -path '*/.new.*' -prune -o \( -name tls.key -o -name token \) -print)
  if [ "$(id -u)" = 0 ]; then chown "$CONTAINER_USER:$CONTAINER_USER" "${secrets[@]}"; else chmod 0644 "${secrets[@]}"; fi
fi
for argument; do
  name=${argument%%=*}
  say "$folder/$name: $(hosts_of "$folder/$name/tls.crt"), until $(openssl x509 -in "$folder/$name/tls.crt" -noout -enddate | cut -d= -f2)"
done
