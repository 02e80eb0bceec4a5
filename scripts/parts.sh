#!/usr/bin/env bash
# Fetches the real parts that the tests run against: Amazon DynamoDB Local, moto for the other AWS services, the npm
# packages of tests/parts and of the readers in examples/, and libfaketime where it can be had.
#
#   scripts/parts.sh          what demonstrations and measurements need
#   scripts/parts.sh --all    and what only the tests need: a reader that was written for AWS's own agent, and Redis, which it
#                             installs itself in a container
#
# Idempotent, and quick when everything is there. Several processes may run it at once: one works, the others wait.
# Everything lands in ignored folders of this checkout: .parts/ and node_modules/ beside each package.json.
# Needs node 20 or newer, npm, java 17 or newer, python 3.9 or newer with venv, cargo, and the npm, PyPI and crates.io
# registries on the first run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Amazon's own build of DynamoDB Local 1.25.1, as this npm package carries it. Nothing of the package itself is run.
dynamodb_package=amplify-dynamodb-simulator@2.9.30
dynamodb_sha1=a7ec81c475dc309aa15d047d8d03679c8be49189
dynamodb_stamp=.parts/dynamodb-local/.complete
node_folders=(tests/parts examples/readers/node)
# S3, KMS and their neighbours; never for the protocol, its DynamoDB loses exclusivity under races.
moto_package='moto[server,s3,kms]==5.2.5'
# Beside it, what readers in Python use.
python_reader=examples/readers/python/requirements.txt
moto_stamp=.parts/moto/.complete
faketime_stamp=.parts/libfaketime/.complete
# A crate from crates.io, and a few lines that call it. It brings OpenSSL: the system's where that can be built against, or else
# its own source, which takes perl, make and some minutes.
extension_reader=tests/parts/extension-reader
extension_stamp=.parts/extension-reader/.complete

say() { printf 'parts: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

sha1() {
    if command -v sha1sum >/dev/null; then sha1sum "$1"; else shasum -a 1 "$1"; fi | cut -d' ' -f1
}

need() {
    command -v "$1" >/dev/null || die "$1 is missing. $2"
}

check_tools() {
    local node_remedy='Install Node.js 20 or newer with npm, for example from https://nodejs.org/ or your package manager.'
    local java_remedy='Install a Java runtime 17 or newer, for example: apt-get install openjdk-17-jre-headless'
    need node "$node_remedy"
    need npm "$node_remedy"
    need python3 'Install Python 3.9 or newer with venv, for example: apt-get install python3-venv'
    need java "$java_remedy"
    need cargo 'Install Rust through rustup: https://rustup.rs/'
    local node_version java_version
    node_version=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
    # "1.8.0" is Java 8 and counts as 1: too old.
    java_version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' || true)
    [ "${node_version:-0}" -ge 20 ] || die "node is too old (${node_version:-unknown}). $node_remedy"
    [ "${java_version:-0}" -ge 17 ] || die "java is too old or does not run (${java_version:-unknown}). $java_remedy"
}

redis_ready() { command -v redis-server >/dev/null; }

redis_remedy='Install Redis 7 or newer, and have no service of it started, for example: apt-get install redis-server'

# Users with rights on reading and on writing (%R~) came with Redis 7.
check_redis() {
    local version
    # "Redis server v=7.0.15 sha=..."; Valkey says "Valkey server v=8.0.1".
    version=$(redis-server --version 2>/dev/null | sed -n 's/.* v=\([0-9]*\).*/\1/p' || true)
    [ "${version:-0}" -ge 7 ] || die "redis-server is too old or does not run (${version:-unknown}). $redis_remedy"
}

# From the distribution. Where services start by themselves, whoever owns the machine installs it.
install_redis() {
    local remedy=$redis_remedy
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || [ -d /run/systemd/system ]; then
        die "redis-server is missing. $remedy"
    fi
    say "installing redis-server"
    # In runlevel 1 no service is started.
    export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive
    fetch_redis || { apt-get update -qq && fetch_redis; } || die "apt-get could not install redis-server. $remedy"
}

fetch_redis() { apt-get install -qq --no-install-recommends redis-server >/dev/null; }

dynamodb_ready() { [ "$(cat "$dynamodb_stamp" 2>/dev/null)" = "$dynamodb_sha1" ]; }

moto_ready() { [ "$(cat "$moto_stamp" 2>/dev/null)" = "$moto_wanted" ]; }

node_installed() {
    local wanted
    wanted=$(sha1 "$1/package-lock.json")
    [ -n "$wanted" ] && [ "$(cat "$1/node_modules/.complete" 2>/dev/null)" = "$wanted" ]
}

node_ready() {
    local folder
    for folder in "${node_folders[@]}"; do node_installed "$folder" || return 1; done
}

# One process at a time. flock ends with its holder, however that dies; where there is none, a folder must do.
lock() {
    if command -v flock >/dev/null; then
        exec 9>.parts/lock
        flock -w 600 9 || die "another run has held .parts/lock for 10 minutes"
        return
    fi
    local waited=0
    until mkdir .parts/lock.d 2>/dev/null; do
        [ "$waited" -lt 600 ] || die "another run has held .parts/lock.d for 10 minutes. Remove it if none is running."
        waited=$((waited + 1))
        sleep 1
    done
    trap 'rmdir .parts/lock.d' EXIT
    trap 'exit 130' INT TERM
}

install_dynamodb() {
    local archive=.parts/download/amplify-dynamodb-simulator-2.9.30.tgz actual
    mkdir -p .parts/download
    if [ ! -f "$archive" ] || [ "$(sha1 "$archive")" != "$dynamodb_sha1" ]; then
        say "downloading DynamoDB Local"
        npm pack --silent --pack-destination .parts/download "$dynamodb_package" >/dev/null ||
            die "npm could not download $dynamodb_package. Check the network and 'npm config get registry'."
    fi
    actual=$(sha1 "$archive")
    [ "$actual" = "$dynamodb_sha1" ] ||
        die "$archive has sha1 $actual and not $dynamodb_sha1. Remove it and run scripts/parts.sh again."
    rm -rf .parts/dynamodb-local
    mkdir -p .parts/dynamodb-local
    tar xzf "$archive" -C .parts/dynamodb-local --strip-components=2 package/emulator
    [ -f .parts/dynamodb-local/DynamoDBLocal.jar ] || die "$archive does not hold DynamoDBLocal.jar"
    echo "$dynamodb_sha1" >"$dynamodb_stamp"
}

install_node() {
    local folder
    for folder in "${node_folders[@]}"; do
        if node_installed "$folder"; then continue; fi
        say "installing the npm packages of $folder"
        (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) ||
            die "npm ci failed in $folder. Check the network and 'npm config get registry'."
        sha1 "$folder/package-lock.json" >"$folder/node_modules/.complete"
    done
}

install_moto() {
    say "installing moto"
    rm -rf .parts/moto
    python3 -m venv .parts/moto ||
        die "python3 cannot make a virtual environment. Install its venv module, for example: apt-get install python3-venv"
    .parts/moto/bin/pip install --quiet --disable-pip-version-check "$moto_package" -r "$python_reader" >&2 ||
        die "pip could not install $moto_package and $python_reader. Check the network and 'pip config list'."
    echo "$moto_wanted" >"$moto_stamp"
}

# Steps the clocks of daemons in tests/chaos.rs and in `make chaos`. Optional: it comes from Debian's or Ubuntu's archive,
# is unpacked here and not installed, and where that fails the clocks are left alone.
faketime_ready() {
    compgen -G '/usr/lib*/*/faketime/libfaketime.so.1' >/dev/null ||
        compgen -G '/usr/lib*/faketime/libfaketime.so.1' >/dev/null || [ -e "$faketime_stamp" ]
}

install_faketime() {
    local folder=.parts/libfaketime
    mkdir -p "$folder"
    if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
        fetch_faketime "$folder" || { [ "$(id -u)" = 0 ] && apt-get update -qq && fetch_faketime "$folder"; } || true
    fi >&2
    compgen -G "$folder/usr/lib/*/faketime/libfaketime.so.1" >/dev/null ||
        say "libfaketime is not to be had: no clock will be skewed. Remedy: install it, and remove $folder."
    : >"$faketime_stamp"
}

fetch_faketime() {
    (cd "$1" && apt-get download -qq libfaketime && dpkg-deb -x libfaketime_*.deb . && rm -f libfaketime_*.deb)
}

extension_ready() { [ "$(cat "$extension_stamp" 2>/dev/null)" = "$extension_sha1" ]; }

install_extension_reader() {
    say "building a reader of AWS's Lambda extension"
    local vendor=()
    if pkg-config --exists openssl 2>/dev/null; then vendor=(OPENSSL_NO_VENDOR=1); fi
    env "${vendor[@]}" CARGO_TARGET_DIR="$PWD/.parts/extension-reader" \
        cargo build --locked --quiet --manifest-path "$extension_reader/Cargo.toml" >&2 ||
        die "cargo could not build $extension_reader. Check the network; without OpenSSL's headers it needs perl and make."
    echo "$extension_sha1" >"$extension_stamp"
}

everything_ready() {
    dynamodb_ready && node_ready && moto_ready && faketime_ready || return 1
    [ -z "$all" ] || { extension_ready && redis_ready; }
}

case "${1-}" in
    '') all= ;;
    --all) all=yes ;;
    *) die "usage: scripts/parts.sh [--all]" ;;
esac
check_tools
moto_wanted="$moto_package $(sha1 "$python_reader")"
extension_sha1="$(sha1 "$extension_reader/Cargo.lock") $(sha1 "$extension_reader/src/main.rs")"
if ! everything_ready; then
    mkdir -p .parts
    lock
    dynamodb_ready || install_dynamodb
    node_ready || install_node
    moto_ready || install_moto
    faketime_ready || install_faketime
    [ -z "$all" ] || extension_ready || install_extension_reader
    [ -z "$all" ] || redis_ready || install_redis
fi
[ -z "$all" ] || check_redis
