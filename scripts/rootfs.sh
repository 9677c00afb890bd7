#!/usr/bin/env bash
# Lays out the files of the container image: scripts/rootfs.sh BINARY FOLDER
#
#   FOLDER/system/  belongs to root: the binary, the CA certificates, and the parents of
#   FOLDER/state/   an empty folder, which becomes each of those that belong to the image's user
set -euo pipefail

binary=${1:?the binary} folder=${2:?the folder to make}
certificates=/etc/ssl/certs/ca-certificates.crt
[ -s "$certificates" ] || { echo "rootfs: $certificates is missing: install ca-certificates" >&2; exit 1; }

rm -rf "$folder"
install -D --mode=0755 "$binary" "$folder/system/usr/bin/wasmferry"
install -D --mode=0644 "$certificates" "$folder/system$certificates"
install -d --mode=0755 "$folder/system/run" "$folder/system/var/lib" "$folder/state"
