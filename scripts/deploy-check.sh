#!/usr/bin/env bash
# Lints the CloudFormation template with cfn-lint and checkov, in each form that its parameters give it.
#
# checkov leaves out what a condition makes false, and judges conditions by the parameters' defaults: the spill's bucket,
# the schedule and the endpoints would never be looked at. So the template is looked at with everything switched on, too.
#
# Idempotent, and quick when the tools are there: they are installed into .parts/deploy/ once, from PyPI. Needs python 3.9
# or newer with venv. checkov asks for nothing on the network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages='cfn-lint==1.58.0 checkov==3.3.30'
tools=.parts/deploy
template=ecs/perennial.yaml

say() { printf 'deploy-check: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

install() {
    [ "$(cat "$tools/.complete" 2>/dev/null)" = "$packages" ] && return
    say "installing $packages"
    rm -rf "$tools"
    mkdir -p .parts
    python3 -m venv "$tools" ||
        die "python3 cannot make a virtual environment. Install its venv module, for example: apt-get install python3-venv"
    # shellcheck disable=SC2086 # Two words are two packages.
    "$tools/bin/pip" install --quiet --disable-pip-version-check $packages >&2 ||
        die "pip could not install $packages. Check the network and 'pip config list'."
    echo "$packages" >"$tools/.complete"
}

# The template with other defaults: form NAME=VALUE... >FILE
form() {
    python3 - "$template" "$@" <<'PYTHON'
import re, sys

text = open(sys.argv[1], encoding="utf-8").read()
for setting in sys.argv[2:]:
    name, value = setting.split("=", 1)
    default = re.compile(rf'(?m)^(  {name}:\n(?:    .*\n)*?    Default: ).*$')
    text, count = default.subn(lambda found: f'{found[1]}"{value}"', text, count=1)
    if count != 1:
        sys.exit(f"{sys.argv[1]} has no parameter {name} with a default")
sys.stdout.write(text)
PYTHON
}

# Fails on any finding, and where nothing was looked at.
checkov() {
    local report
    report=$("$tools/bin/checkov" --file "$1" --framework cloudformation --skip-download --compact --quiet 2>/dev/null) ||
        { printf '%s\n' "$report"; die "checkov objects to $2"; }
    report=$(grep 'Passed checks:' <<<"$report") || die "checkov did not look at $2"
    say "$2: $report"
}

install
"$tools/bin/cfn-lint" "$template" || die "cfn-lint objects to $template"
say "cfn-lint has nothing to say"

forms=$(mktemp -d)
trap 'rm -rf "$forms"' EXIT
everything=(
    CreateSpillBucket=true CreateVpcEndpoints=true AutoScaling=true AlarmEmail=on-call@example.org
    SealingKeySecretArn=arn:aws:secretsmanager:us-east-1:123456789012:secret:sealing
    SealingKmsKeyArn=arn:aws:kms:us-east-1:123456789012:key/66666666-7777-8888-9999-000000000000
)
form >"$forms/default.yaml"
form "${everything[@]}" >"$forms/service.yaml"
form "${everything[@]}" Mode=Scheduled >"$forms/scheduled.yaml"
checkov "$forms/default.yaml" "the template by its defaults"
checkov "$forms/service.yaml" "a service with everything on"
checkov "$forms/scheduled.yaml" "a schedule with everything on"
