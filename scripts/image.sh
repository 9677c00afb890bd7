#!/usr/bin/env bash
# Packs a binary that is built already into a container image, by buildah and without a builder image:
# scripts/image.sh BINARY TAG
set -euo pipefail

binary=${1:?the binary} tag=${2:?the name of the image}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v buildah >/dev/null || { echo "image: buildah is missing (scripts/tools.sh buildah)" >&2; exit 1; }

# One folder a run: tests may build beside each other.
mkdir -p target/rootfs
rootfs=$(mktemp -d target/rootfs/XXXXXX)
trap 'rm -rf "$rootfs"' EXIT
scripts/rootfs.sh "$binary" "$rootfs"
# Docker's format, since OCI's has no health check. Nothing is run in the build, so a chroot would do.
buildah build --isolation=chroot --format=docker --target=packed --build-arg "ROOTFS=$rootfs" --tag "$tag" .
