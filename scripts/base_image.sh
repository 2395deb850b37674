#!/usr/bin/env bash
# Makes the base of the container images where no image registry can be reached: the same Debian release as
# debian:bookworm-slim, from Debian's package mirror.
#
#   scripts/base_image.sh [TAG]       TAG: default distillery/base:bookworm; does nothing when the engine has it
#
# DEBIAN_MIRROR names the mirror to use (default: debootstrap's). Needs root (debootstrap) and a running engine. Prints TAG.
. "$(dirname "$0")/common.sh"
[ "${1:-}" = --help ] && { usage; exit 0; }
tag=${1:-distillery/base:bookworm}
docker image inspect "$tag" >/dev/null 2>&1 && { echo "$tag"; exit 0; }
archive=$BUILD/base-bookworm.tar
if [ ! -f "$archive" ]; then
  command -v debootstrap >/dev/null || die "debootstrap is not installed: run scripts/setup.sh --containers"
  say "making a Debian 12 root file system in $archive"
  root=$(mktemp -d "$BUILD/base.XXXXXX")
  trap 'as_root rm -rf "$root"' EXIT
  as_root debootstrap --variant=minbase bookworm "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$BUILD/base-bookworm.log" 2>&1 ||
    { tail -n 20 "$BUILD/base-bookworm.log" >&2; die "debootstrap failed"; }
  # What the slim images leave out: documentation, translations, package lists.
  as_root rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,info,locale} "$root"/var/log/*
  as_root chmod 755 "$root"  # it is / for whoever runs in the container
  as_root tar -C "$root" --one-file-system -cf "$archive.new" .
  as_root chown "$(id -u):$(id -g)" "$archive.new"
  mv "$archive.new" "$archive"
fi
docker import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' --change 'CMD ["bash"]' "$archive" "$tag" >/dev/null
echo "$tag"
