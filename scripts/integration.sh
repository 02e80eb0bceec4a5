#!/usr/bin/env bash
# Runs the integration tests in two lanes: those that mostly wait for daemons to live through something, beside all others.
# What the first lane says comes when the others are done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo=${CARGO:-cargo}
waiting=(alarms chaos drills leaks siege)

others=()
for file in tests/*.rs; do
    name=$(basename "$file" .rs)
    [[ " ${waiting[*]} " == *" $name "* ]] || others+=("$name")
done
named() { printf -- '--test\n%s\n' "$@"; }

"$cargo" test --locked --test '*' --no-run
log=$(mktemp)
lane=
# Ends the lane with all that it has started.
end() {
    rm -f "$log"
    [ -z "$lane" ] || { kill -- "-$lane" && wait "$lane"; } 2>/dev/null || true
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mapfile -t arguments < <(named "${waiting[@]}")
# In a process group of its own: what a script starts in the background does not hear of Ctrl-C.
set -m
"$cargo" test --locked --no-fail-fast "${arguments[@]}" >"$log" 2>&1 </dev/null &
lane=$!
set +m
mapfile -t arguments < <(named "${others[@]}")
failed=0
"$cargo" test --locked --no-fail-fast "${arguments[@]}" || failed=1
wait "$lane" || failed=1
lane=
cat "$log"
exit "$failed"
