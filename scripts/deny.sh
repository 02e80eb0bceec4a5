#!/usr/bin/env bash
# Holds the dependency tree to deny.toml, as far as this machine can: cargo-deny may not be installed, and its advisory
# database may be out of reach. What was not checked is said; what was checked and is wrong fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'deny: %s\n' "$*" >&2; }

if ! cargo deny --version >/dev/null 2>&1; then
    say "NOT CHECKED: cargo-deny is not installed (cargo install cargo-deny --locked)"
    exit 0
fi
cargo deny --locked check bans licenses sources
if cargo deny --locked fetch db >/dev/null 2>&1; then
    cargo deny --locked check advisories
else
    say "advisories NOT CHECKED: their database could not be fetched"
fi
