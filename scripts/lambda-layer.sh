#!/usr/bin/env bash
# Builds the layer for AWS Lambda, and tries what is in it: it is unpacked as Lambda does it, its program is held to the glibc of
# Amazon Linux 2023, and runs as an extension against an imitation of Lambda's Extensions API (tests/lambda.rs). Ends with a line
# for programs.
#
#   scripts/lambda-layer.sh [FOLDER]       # target/lambda-layer
#
# From the environment: PROFILE (release; dev is quick), TARGET (a Rust target other than this machine's: it is built and not run),
# CARGO. Needs zip, unzip and binutils; the fetched parts of scripts/parts.sh to try it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=perennial-lambda-extension
# What Lambda takes in one call ("Lambda quotas" in the AWS Lambda Developer Guide): 50 MB zipped, 250 MB of all layers unpacked.
limit=52428800
unpacked_limit=262144000
# The glibc of Amazon Linux 2023, which the runtimes stand on.
glibc=2.34
profile=${PROFILE:-release}
cargo=${CARGO:-cargo}
folder=${1:-target/lambda-layer}

die() { printf 'lambda-layer: %s\n' "$*" >&2; exit 1; }
for tool in zip unzip readelf strip; do
    command -v "$tool" >/dev/null || die "$tool is missing. Install it, for example: apt-get install zip unzip binutils"
done
arguments=(build --locked --profile "$profile" --no-default-features --features jemalloc --bin perennial)
built=target
own=$(rustc -vV | sed -n 's/^host: //p')
target=${TARGET:-$own}
if [ "$target" != "$own" ]; then
    arguments+=(--target "$target")
    built=target/$target
fi
"$cargo" "${arguments[@]}" >&2
case $profile in
    dev) built=$built/debug ;;
    bench) built=$built/release ;;
    *) built=$built/$profile ;;
esac

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
layer=$folder/perennial-lambda-${target%%-*}.zip
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage/layer/extensions" "$stage/opt"
install -m 0755 "$built/perennial" "$stage/layer/extensions/$name"
# Builds for release have no symbols anyhow; another machine's strip does not know this one's files.
[ "$target" != "$own" ] || strip "$stage/layer/extensions/$name"
rm -f "$layer"
# The same build gives the same bytes.
find "$stage/layer" -exec touch -d '2020-01-01T00:00:00Z' {} +
(cd "$stage/layer" && zip -q -X -r "$layer" extensions)

# As Lambda: a layer's content is under /opt, and every file in /opt/extensions is started.
unzip -q "$layer" -d "$stage/opt"
program=$stage/opt/extensions/$name
[ "$(ls -A "$stage/opt")" = extensions ] && [ "$(ls -A "$stage/opt/extensions")" = "$name" ] ||
    die "$layer holds something else than extensions/$name"
[ -x "$program" ] || die "$name is not executable in $layer"
needs=$(readelf -V "$program" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -n 1)
[ "$(printf '%s\n' "$needs" "$glibc" | sort -V | tail -n 1)" = "$glibc" ] ||
    die "the program needs glibc $needs, and Lambda has $glibc: build it on an older system"
if [ "$target" = "$own" ]; then
    PERENNIAL_LAYER="$stage/opt" "$cargo" test --locked --quiet --test lambda >&2 || die "the layer's program does not do as an extension"
    tried=yes
else
    tried=no
fi
bytes=$(stat -c %s "$layer")
unpacked=$(stat -c %s "$program")
printf 'summary layer=%s bytes=%s limit=%s unpacked=%s unpacked_limit=%s glibc=%s profile=%s tried=%s\n' \
    "$layer" "$bytes" "$limit" "$unpacked" "$unpacked_limit" "$needs" "$profile" "$tried"
[ "$bytes" -le "$limit" ] && [ "$unpacked" -le "$unpacked_limit" ] || die "$layer is too large"
