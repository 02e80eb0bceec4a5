#!/usr/bin/env bash
# Writes the bill of materials of the production build, as CycloneDX in JSON, to target/sbom/perennial.cdx.json, and holds
# it to the dependency tree: every crate that is built in is listed, with its version, licence and checksum, and none
# beside. (The tool lists what Cargo.lock would allow as well: ring, say, for which an auditor would look in vain.)
#
# It is of the machine's own kind of system, as the image is.
#
# The tool is built from crates.io once, into .parts/cargo, in this version: minutes the first time, seconds afterwards.
# The production build is without default features, for the systems that deny.toml names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.5.9
tools=.parts/cargo
out=target/sbom/perennial.cdx.json

say() { printf 'sbom: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

installed() { [ "$("$tools/bin/cargo-cyclonedx" cyclonedx --version 2>/dev/null)" = "cargo-cyclonedx-cyclonedx $version" ]; }

install() {
    installed && return
    say "building cargo-cyclonedx $version, once"
    mkdir -p "$tools"
    # Its own choice of compiler: it is no part of what is built here.
    cargo install --quiet --locked --root "$tools" --version "$version" cargo-cyclonedx ||
        die "cargo could not install cargo-cyclonedx $version. Check the network and crates.io's availability."
}

install
mkdir -p "$(dirname "$out")"
# The tool writes beside Cargo.toml, under a name of its own.
host=$(rustc -vV | sed -n 's/^host: //p')
trap 'rm -f perennial-sbom.json' EXIT
# The same commit has the same bill.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
"$tools/bin/cargo-cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 --no-default-features --features jemalloc --target "$host" \
    --override-filename perennial-sbom || die "cargo-cyclonedx failed"
mv perennial-sbom.json "$out"
cargo tree --locked --no-default-features --features jemalloc --target "$host" -e normal,build --prefix none -f '{p}' |
    awk '{ print $1, substr($2, 2) }' | sort -u >"$out.tree"

python3 - "$out" "$out.tree" "$host" <<'PYTHON'
import json, re, sys

with open(sys.argv[1], encoding="utf-8") as file:
    # Where it was checked out is nobody's business.
    bom = json.loads(re.sub(r"path\+file://[^#\"]*#", "path+file:///#", file.read()))
with open(sys.argv[2], encoding="utf-8") as file:
    tree = {tuple(line.split()) for line in file}

problems = []
if (bom.get("bomFormat"), bom.get("specVersion")) != ("CycloneDX", "1.5"):
    problems.append("it is no CycloneDX 1.5")
own = bom["metadata"]["component"]
tree.discard((own["name"], own["version"]))
found = len(bom["components"])
bom["components"] = [part for part in bom["components"] if (part["name"], part["version"]) in tree]
components = {(part["name"], part["version"]): part for part in bom["components"]}
if len(tree) < 100:
    problems.append(f"the dependency tree has {len(tree)} crates: it was not read")
problems += [f"{name} {version} is built in and not listed" for name, version in sorted(tree - components.keys())]
for (name, version), part in components.items():
    if not part.get("licenses"):
        problems.append(f"{name} {version} has no licence")
    if not part.get("hashes"):
        problems.append(f"{name} {version} has no checksum")
    if f"/{name}@{version}" not in part.get("purl", ""):
        problems.append(f"{name} {version} has no package URL of its own")
refs = {part["bom-ref"] for part in [own, *bom["components"]]}
bom["dependencies"] = [
    {**edge, "dependsOn": [ref for ref in edge.get("dependsOn", []) if ref in refs]}
    for edge in bom["dependencies"]
    if edge["ref"] in refs
]
known = {edge["ref"] for edge in bom["dependencies"]}
if refs - known:
    problems.append(f"of {len(refs - known)} components it is not said what they depend on")

for problem in problems:
    print(f"sbom: {problem}", file=sys.stderr)
with open(sys.argv[1], "w", encoding="utf-8") as file:
    json.dump(bom, file, indent=1)
dropped = found - len(components)
print(f"summary components={len(components)} dropped={dropped} target={sys.argv[3]} problems={len(problems)}")
sys.exit(1 if problems else 0)
PYTHON
