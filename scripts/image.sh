#!/usr/bin/env bash
# Builds the image, and holds it to its size: 40 MB of what `docker save` writes, which is what a registry stores before
# it compresses. Ends with a line for programs.
#
#   scripts/image.sh [TAG]          # perennial:latest
#
# From the environment: DOCKER (another client, as in "docker -H unix:///run/other.sock"), BUILD_BASE and RUNTIME_BASE (see
# the Dockerfile), BUILD_ARGS (further arguments of `docker build`).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

limit=40000000
tag=${1:-perennial:latest}
read -ra docker <<<"${DOCKER:-docker}"
read -ra arguments <<<"${BUILD_ARGS:-}"

die() { printf 'image: %s\n' "$*" >&2; exit 1; }

"${docker[@]}" info >/dev/null 2>&1 ||
    die "no container engine answers. Start one, or name its client: DOCKER=\"docker -H unix:///run/other.sock\""
for base in BUILD_BASE RUNTIME_BASE; do
    [ -z "${!base:-}" ] || arguments+=(--build-arg "$base=${!base}")
done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
"${docker[@]}" build "${arguments[@]}" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --tag "$tag" . >&2
printed=$("${docker[@]}" run --rm --read-only --network none --cap-drop ALL "$tag" --version)
[ "$printed" = "perennial $version" ] || die "$tag says that it is '$printed' and not perennial $version"
user=$("${docker[@]}" inspect --format '{{.Config.User}}' "$tag")
bytes=$("${docker[@]}" save "$tag" | wc -c)
printf 'summary image=%s bytes=%s limit=%s user=%s\n' "$tag" "$bytes" "$limit" "$user"
[ "$bytes" -le "$limit" ] || die "$tag is too large"
