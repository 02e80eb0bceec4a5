#!/usr/bin/env bash
# Stand-ins for the images that the Dockerfiles and docker-compose.yml start from, for a machine that has an engine and
# reaches package mirrors, but no image registry. Where `docker pull` works, do not run this; an image that is there is
# left alone. They are for building and testing, not for publishing.
#
# Each is made under the name of what it stands for, so that nothing else changes, and carries the label
# perennial.standin, by which they are removed again:
#
#   docker image rm --force $(docker image ls --quiet --filter label=perennial.standin)
#
#   rust:1.95-slim-bookworm, debian:bookworm-slim   one Debian by debootstrap: C compiler, curl, Java, and this machine's Rust
#   gcr.io/distroless/static-debian12:nonroot       nothing at all: what is built on it has to bring all that it needs
#   amazon/dynamodb-local:1.25.1                    that Debian, and the DynamoDB Local of scripts/parts.sh
#
# Needs root, debootstrap, a Debian mirror, and Rust. From the environment:
#
#   DOCKER          another client, as in "docker -H unix:///run/other.sock"
#   DEBIAN_MIRROR   http://deb.debian.org/debian
#   BUILD_CA        the certificates that cargo trusts in a build, where a proxy reads TLS; else this machine's own. No
#                   image of the project contains them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
build_ca=${BUILD_CA:-/etc/ssl/certs/ca-certificates.crt}
rust=rust:1.95-slim-bookworm
debian=debian:bookworm-slim
static=gcr.io/distroless/static-debian12:nonroot
dynamodb=amazon/dynamodb-local:1.25.1
read -ra docker <<<"${DOCKER:-docker}"
# The plain builder will do, and an engine may lack the other.
export DOCKER_BUILDKIT=0

say() { printf 'standins: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check_tools() {
    [ "$(id -u)" = 0 ] || die "debootstrap needs root: run this with sudo"
    "${docker[@]}" info >/dev/null 2>&1 ||
        die "no container engine answers. Start one, or name its client: DOCKER=\"docker -H unix:///run/other.sock\""
    command -v debootstrap >/dev/null || die "debootstrap is missing. Install it: apt-get install debootstrap"
    rustc --version 2>/dev/null | grep -qF 'rustc 1.95.' || die "Rust 1.95 is missing: install rustup, https://rustup.rs"
    [ -f "$build_ca" ] || die "$build_ca is missing: name a file of certificates in BUILD_CA"
}

here() { "${docker[@]}" image inspect "$1" >/dev/null 2>&1; }

make_debian() {
    local root=$work/debian toolchain
    toolchain=$(rustc --print sysroot)
    say "making $rust and $debian"
    debootstrap --variant=minbase --include=ca-certificates,curl,gcc,libc6-dev,openjdk-17-jre-headless \
        bookworm "$root" "$mirror" >"$work/debootstrap.log" 2>&1 ||
        { tail -20 "$work/debootstrap.log" >&2; die "debootstrap failed"; }
    rm -rf "$root"/var/cache/apt/archives/*.deb
    cp -r "$toolchain/bin" "$toolchain/lib" "$root/usr/local/"
    cp "$build_ca" "$root/usr/local/etc/build-ca.crt"
    tar -C "$root" -c . | "${docker[@]}" import --change "LABEL perennial.standin=yes" \
        --change 'ENV CARGO_HTTP_CAINFO=/usr/local/etc/build-ca.crt' --change 'CMD ["bash"]' - "$rust" >/dev/null
    here "$debian" || "${docker[@]}" tag "$rust" "$debian"
    rm -rf "$root"
}

make_static() {
    say "making $static"
    "${docker[@]}" build --quiet --tag "$static" - >/dev/null <<EOF
FROM scratch
LABEL perennial.standin=yes
USER 65532
EOF
}

make_dynamodb() {
    say "making $dynamodb"
    scripts/parts.sh
    "${docker[@]}" build --quiet --tag "$dynamodb" --file - .parts/dynamodb-local >/dev/null <<EOF
FROM $debian
LABEL perennial.standin=yes
RUN useradd --create-home dynamodblocal
COPY --chown=dynamodblocal . /home/dynamodblocal
USER dynamodblocal
WORKDIR /home/dynamodblocal
EXPOSE 8000
ENTRYPOINT ["java"]
CMD ["-jar", "DynamoDBLocal.jar", "-inMemory"]
EOF
}

check_tools
here "$rust" || make_debian
here "$static" || make_static
here "$dynamodb" || make_dynamodb
"${docker[@]}" image ls --filter label=perennial.standin
