#!/usr/bin/env bash
# Builds the image, and holds it to what is said of it: it runs as process 1 on a read-only root without capabilities, finds
# the certificates that it trusts, asks for its own health without a shell, and takes at most 40 MB of what `docker save`
# writes, which is what a registry stores before it compresses. Ends with a line for programs.
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

sealed() {
    "${docker[@]}" run --rm --read-only --network none --cap-drop ALL --security-opt no-new-privileges "$@"
}

# A run that ends without a table. With a provider it refuses to start where it finds no certificates at all.
once() {
    sealed --env PERENNIAL__STORE__TABLE=none-such --env PERENNIAL__STORE__REGION=us-east-1 --env AWS_ACCESS_KEY_ID=none \
        --env AWS_SECRET_ACCESS_KEY=none --env PERENNIAL__STORE__ENDPOINT=http://127.0.0.1:9 \
        --env PERENNIAL__PROVIDERS__ACME__TOKEN_URL=https://auth.acme.example/token "$@" "$tag" run --once 2>&1 || true
}

# Hidden certificates have to be missed, or it proves nothing that those of the image are found.
check_certificates() {
    local there hidden
    there=$(once)
    grep -q 'no answer from http://127.0.0.1:9/' <<<"$there" || die "it does not come as far as its table: $there"
    ! grep -qi certificate <<<"$there" || die "it does not find its certificates: $there"
    hidden=$(once --tmpfs /etc/ssl)
    grep -q 'No CA certificates' <<<"$hidden" || die "it does without certificates: $hidden"
}

printed=$(sealed "$tag" --version)
[ "$printed" = "perennial $version" ] || die "$tag says that it is '$printed' and not perennial $version"
check_certificates
health=$("${docker[@]}" inspect --format '{{json .Config.Healthcheck.Test}}' "$tag")
[ "$health" = '["CMD","/usr/local/bin/perennial","healthcheck"]' ] || die "its health check is $health"
user=$("${docker[@]}" inspect --format '{{.Config.User}}' "$tag")
bytes=$("${docker[@]}" save "$tag" | wc -c)
printf 'summary image=%s bytes=%s limit=%s user=%s\n' "$tag" "$bytes" "$limit" "$user"
[ "$bytes" -le "$limit" ] || die "$tag is too large"
