#!/usr/bin/env bash
# Fuzzes the entries of strangers' bytes, one after the other, each for so many seconds (600 without an argument):
# scripts/fuzz.sh [SECONDS] [TARGET...]
#
# What is found interesting is merged into the committed corpus, which tests/hostile.rs replays. It is kept small, since it
# is a place to begin and not a record; inputs with names of their own always stay. A crash is printed, its input stays in
# fuzz/artifacts, and the run fails: keep that input in the corpus, under the name of what broke.
#
# Needs a nightly toolchain and cargo-fuzz: coverage counters and the address sanitizer are nightly's. The first build takes
# some twenty minutes of processor time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:-600}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(token_response error_body table_item configuration jwe http_request)
# A committed corpus: so many inputs of so many bytes at most, the smallest first.
most_inputs=280
most_bytes=4096
toolchain=nightly

say() { printf 'fuzz: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || die "SECONDS is a whole number, not \"$seconds\""
cargo "+$toolchain" fuzz --version >/dev/null 2>&1 ||
    die "cargo-fuzz or the toolchain $toolchain is missing: rustup toolchain install nightly; cargo install cargo-fuzz --locked"
host=$(rustc "+$toolchain" -vV | sed -n 's/^host: //p')

export RUST_BACKTRACE=${RUST_BACKTRACE:-0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
executions=0
crashes=0

# Runs a target as it was built, so that what is edited meanwhile does not get into the run: enter TARGET ARGUMENT...
enter() {
    local target=$1
    shift
    mkdir -p "fuzz/artifacts/$target"
    "fuzz/target/$host/release/$target" "-artifact_prefix=fuzz/artifacts/$target/" -max_len=8192 "$@"
}

# Of what was merged, keeps what is worth committing.
keep() {
    local target=$1 kept="fuzz/corpus/$1"
    # libFuzzer names its finds by their digest.
    find "$kept" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
    # awk reads to the end: `head` would not, and what writes to it would fail.
    find "$work/merged" -type f -size "-$((most_bytes + 1))c" -printf '%s %f\n' | sort -n |
        awk -v most="$most_inputs" 'NR <= most { print $2 }' |
        while read -r name; do cp "$work/merged/$name" "$kept/"; done
    say "$target: $(find "$kept" -type f | wc -l) inputs, $(find "$kept" -type f -printf '%s\n' | awk '{ s += $1 } END { print s + 0 }') bytes"
}

fuzz() {
    local target=$1 failed=0 runs coverage
    say "$target for $seconds s"
    rm -rf "$work/found" "$work/merged"
    mkdir -p "$work/found" "$work/merged" "fuzz/corpus/$target"
    # The first folder is written to.
    enter "$target" "$work/found" "fuzz/corpus/$target" "-max_total_time=$seconds" -timeout=20 -rss_limit_mb=2048 \
        -print_final_stats=1 >"$work/log" 2>&1 || failed=1
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log" | tail -1)
    coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$work/log" | tail -1)
    executions=$((executions + ${runs:-0}))
    crashes=$((crashes + failed))
    if [ "$failed" -ne 0 ]; then
        grep -v '^#' "$work/log" | tail -n 40 >&2
    else
        enter "$target" -merge=1 "$work/merged" "$work/found" "fuzz/corpus/$target" >"$work/log" 2>&1 ||
            { tail -n 20 "$work/log" >&2; die "$target: the corpus cannot be merged"; }
        keep "$target"
    fi
    echo "target=$target runs=${runs:-0} coverage=${coverage:-0} crashed=$failed"
}

say "building"
cargo "+$toolchain" fuzz build
for target in "${targets[@]}"; do fuzz "$target"; done
echo "summary targets=${#targets[@]} seconds=$seconds executions=$executions crashes=$crashes"
[ "$crashes" -eq 0 ]
