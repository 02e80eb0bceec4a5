#!/usr/bin/env bash
# Fails unless the program is built on one HTTP and TLS stack: one hyper, one rustls, one reqwest, one aws-lc, and no
# OpenSSL, native-tls or ring.
#
# A careless feature of an AWS or HTTP crate brings a second, legacy stack along. It compiles, it works, and it doubles
# the code that has to be watched for advisories. `cargo deny` refuses it too, where it is installed; this needs cargo
# alone. Looked at with and without default features, since the production image is built without.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Exactly one version of each.
one=(hyper rustls reqwest aws-lc-rs aws-lc-sys)
none=(openssl openssl-sys native-tls hyper-tls ring)

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

# A check that cannot fail is none: it is shown three trees that it must refuse and one that it must not.
self_test() {
    local good=$'hyper v1.0.0\nrustls v0.23.0\nreqwest v0.13.0\naws-lc-rs v1.0.0\naws-lc-sys v0.1.0'
    judge <<<"$good" >/dev/null || { say "self-test: refuses a good tree"; exit 2; }
    local bad
    for bad in $'hyper v0.14.0\n'"$good" $'openssl-sys v0.9.0\n'"$good" "${good#hyper v1.0.0}"; do
        if judge <<<"$bad" >/dev/null; then say "self-test: accepts a bad tree"; exit 2; fi
    done
}

self_test
failed=0
for features in --all-features --no-default-features; do
    tree=$(cargo tree --locked "$features" -e normal,build --prefix none -f '{p}' | cut -d' ' -f1,2)
    if ! complaints=$(judge <<<"$tree"); then
        failed=1
        while read -r name reason; do
            say "$features: $name $reason"
            for version in $(awk -v name="$name" '$1 == name { print substr($2, 2) }' <<<"$tree" | sort -u); do
                cargo tree --locked "$features" -e normal,build -i "$name@$version" --depth 3 >&2
            done
        done <<<"$complaints"
    fi
done
[ "$failed" -eq 0 ] || { say "remedy: default-features = false on the crate that brings it, see the AWS notes in Cargo.toml"; exit 1; }
