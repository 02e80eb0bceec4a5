#!/usr/bin/env bash
# Fails unless the program is built on one HTTP and TLS stack: one hyper, one rustls, one reqwest, one aws-lc, with what
# belongs to them, and no OpenSSL, no TLS of the platform's, no ring and no second aws-lc (its FIPS build).
#
# A careless feature of an AWS or HTTP crate brings a second, legacy stack along. It compiles, it works, and it doubles
# the code that has to be watched for advisories. `cargo deny` refuses it too, where it is installed; this needs cargo
# alone. Looked at with and without default features, since the production image is built without, and for each system
# that deny.toml names. Two questions, since each can be asked wrongly: is there just one version of each in the tree,
# and does `cargo tree --duplicates` name none of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Exactly one version of each.
one=(
    hyper hyper-util hyper-rustls h2 http http-body reqwest
    rustls rustls-webpki rustls-pki-types tokio-rustls aws-lc-rs aws-lc-sys tokio
)
none=(openssl openssl-sys native-tls hyper-tls tokio-native-tls ring aws-lc-fips-sys boring boring-sys s2n-tls mbedtls)
mapfile -t targets < <(sed -n '/^targets = \[/,/^\]/s/^ *"\([^"]*\)",$/\1/p' deny.toml)

say() { printf 'one-tls-stack: %s\n' "$*" >&2; }

# Reads "NAME vVERSION" lines; prints each complaint as "NAME REASON", and fails if there is any.
judge() {
    local tree name versions count bad=0
    tree=$(sort -u)
    for name in "${one[@]}"; do
        versions=$(awk -v name="$name" '$1 == name { print $2 }' <<<"$tree" | xargs)
        count=$(wc -w <<<"$versions")
        [ "$count" -eq 1 ] || { echo "$name must be there exactly once, and is there $count times: $versions"; bad=1; }
    done
    for name in "${none[@]}"; do
        if grep -q "^$name v" <<<"$tree"; then echo "$name must not be there"; bad=1; fi
    done
    return "$bad"
}

# Reads the same of crates that are there in several versions; complains of those that must not be.
judge_duplicates() {
    local tree name bad=0
    tree=$(cat)
    for name in "${one[@]}"; do
        if grep -q "^$name v" <<<"$tree"; then echo "$name is among the duplicates"; bad=1; fi
    done
    return "$bad"
}

# A check that cannot fail is none: it is shown trees that it must refuse and one that it must not.
self_test() {
    local good
    good=$(printf '%s v1.0.0\n' "${one[@]}")
    judge <<<"$good" >/dev/null || { say "self-test: refuses a good tree"; exit 2; }
    local bad
    for bad in $'hyper v0.14.0\n'"$good" $'openssl-sys v0.9.0\n'"$good" "${good#hyper v1.0.0}"; do
        if judge <<<"$bad" >/dev/null; then say "self-test: accepts a bad tree"; exit 2; fi
    done
    judge_duplicates <<<$'rand v0.8.5\nrand v0.9.0' >/dev/null || { say "self-test: refuses other duplicates"; exit 2; }
    if judge_duplicates <<<$'rustls v0.21.0\nrustls v0.23.0' >/dev/null; then say "self-test: accepts two of one"; exit 2; fi
    [ "${#targets[@]}" -ge 4 ] || { say "self-test: deny.toml names ${#targets[@]} systems"; exit 2; }
}

self_test
failed=0
for features in --all-features --no-default-features; do
    for target in "${targets[@]}"; do
        ask=(cargo tree --locked "$features" --target "$target" -e "normal,build")
        # Into variables, so that a cargo that fails ends this script.
        tree=$("${ask[@]}" --prefix none -f '{p}' | cut -d' ' -f1,2)
        duplicates=$("${ask[@]}" --duplicates --depth 0 --prefix none -f '{p}' | cut -d' ' -f1,2)
        complaints=$(judge <<<"$tree" || true; judge_duplicates <<<"$duplicates" || true)
        [ -n "$complaints" ] || continue
        failed=1
        while read -r name reason; do
            say "$features, $target: $name $reason"
            for version in $(awk -v name="$name" '$1 == name { print substr($2, 2) }' <<<"$tree" | sort -u); do
                "${ask[@]}" -i "$name@$version" --depth 3 >&2
            done
        done <<<"$complaints"
    done
done
[ "$failed" -eq 0 ] || { say "remedy: default-features = false on the crate that brings it, see the AWS notes in Cargo.toml"; exit 1; }
