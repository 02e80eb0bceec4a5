#!/usr/bin/env python3
"""Starts docker-compose.yml, kills one of its two daemons, and judges what becomes of the clients.

    scripts/compose-test.py         # make compose-test

Under a project name and on ports of its own, so that it disturbs nothing; it takes down whatever it has started. It asks
the table, through the surviving daemon's program, and the provider's own log of what was redeemed:

  - every client is fresh before one daemon is killed, and is refreshed twice more after that
  - no client's access token expires meanwhile
  - the provider has seen no refresh token twice, and each generation of a grant once

Ends with a line that begins with `summary`. Exit code: 0 clean, 1 unclean, 77 where there is no engine or no compose.

From the environment, besides what docker-compose.yml takes:

  DOCKER, COMPOSE   other clients, as in "docker -H unix:///run/other.sock" and "docker-compose"
  PERENNIAL_IMAGE, PROVIDER_IMAGE   images that are there; else both are built of this checkout, with
  BUILD_BASE, RUNTIME_BASE, SAMPLE_BASE, BUILD_ARGS   as for scripts/image.sh
"""

import collections
import datetime
import json
import os
import re
import sys
import time

from engine import Unclean, build, compose, docker, say, wait_for

CLIENTS = int(os.environ.get("SAMPLE_CLIENTS", "12"))
TOKEN_SECONDS = int(os.environ.get("TOKEN_SECONDS", "60"))
GENERATIONS = 2
PROGRAM = "/usr/local/bin/perennial"


def seconds(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class Stack:
    def __init__(self, engine, client, project):
        self.engine, self.client, self.project = engine, client, project

    def compose(self, *arguments):
        return self.client.run("--project-name", self.project, *arguments)

    def container(self, service):
        found = self.compose("ps", "-q", service)
        if not found:
            raise Unclean(f"{service} has no container")
        return found

    def state(self, container):
        return self.engine.run("inspect", "--format", "{{.State.Status}} {{.State.Health.Status}}", container)

    def clients(self, daemon):
        """Each client's state and expiry, as the table has them."""
        lines = self.engine.run("exec", daemon, PROGRAM, "clients", "list", "--json").splitlines()
        return {client["client"]: client for client in map(json.loads, lines)}

    def owned(self, daemon, clients):
        """How many of the clients this daemon has refreshed last: its name in the leases is in its log."""
        log = self.engine.run("logs", daemon, errors=True)
        name = re.search(r'"incarnation":"([0-9a-f]+)"', log).group(1)
        return sum(client["owner"].startswith(name) for client in clients.values())

    def redemptions(self):
        log = self.engine.run("exec", self.container("provider"), "cat", "/samples/redemptions.jsonl")
        return [json.loads(line) for line in log.splitlines()]

    def logs(self):
        return self.client.attempt("--project-name", self.project, "logs", "--no-color", "--tail", "40").stdout

    def down(self):
        self.client.attempt("--project-name", self.project, "down", "--volumes", "--remove-orphans", "--timeout", "20")


class Watch:
    """What is seen of the clients over time: their expiries, one after another, and who was without a good token."""

    def __init__(self):
        self.expiries = collections.defaultdict(list)
        self.expired = set()

    def look(self, clients):
        now = time.time()
        for name, client in clients.items():
            expiry = client["expires_at"]
            if expiry is None:
                continue  # its first token is yet to come
            if seconds(expiry) <= now:
                self.expired.add(name)
            if expiry not in self.expiries[name]:
                self.expiries[name].append(expiry)

    def least(self):
        """Refreshes of the client that had the fewest."""
        return min(len(expiries) - 1 for expiries in self.expiries.values())


def at_rest(clients):
    """The clients, where none has an attempt under way."""
    return clients if all(client["state"] == "idle" for client in clients.values()) else None


def redeemed_twice(log):
    """What the provider calls so, and each generation that it has granted more than once."""
    granted = [(line["family"], line["generation"]) for line in log if line["generation"] is not None]
    repeated = len(granted) - len(set(granted))
    return sum(line["double_redemption"] for line in log) + repeated


def trial(stack):
    begun = time.monotonic()
    stack.compose("up", "--detach", "--no-build")
    daemons = [stack.container("daemon-1"), stack.container("daemon-2")]
    for daemon in daemons:
        wait_for(120, "both daemons are healthy", lambda daemon=daemon: stack.state(daemon) == "running healthy")
    say(f"healthy after {time.monotonic() - begun:.0f} s; waiting until both daemons keep all {CLIENTS} clients fresh")
    early = Watch()

    def kept():
        early.look(stack.clients(daemons[0]))
        return len(early.expiries) == CLIENTS and early.least() >= 1

    wait_for(TOKEN_SECONDS + 120, "each client was refreshed after its first token", kept)
    # Between two attempts: one whose answer is lost on the way to the table is the one loss that nobody can prevent.
    clients = wait_for(60, "nothing is in flight", lambda: at_rest(stack.clients(daemons[0])), every=0.1)
    owned = [stack.owned(daemon, clients) for daemon in daemons]
    victim, survivor = sorted(daemons, key=lambda daemon: -owned[daemons.index(daemon)])
    stack.engine.run("kill", "--signal", "KILL", victim)
    say(f"{time.monotonic() - begun:.0f} s: one keeps {owned[0]} fresh, the other {owned[1]}; killed that of {max(owned)}")
    killed_at, before = time.monotonic(), len(stack.redemptions())
    watch = Watch()

    def refreshed():
        watch.look(stack.clients(survivor))
        return len(watch.expiries) == CLIENTS and watch.least() >= GENERATIONS

    try:
        wait_for(GENERATIONS * TOKEN_SECONDS + 120, f"each client was refreshed {GENERATIONS} times", refreshed)
        say(f"{GENERATIONS} refreshes each, {time.monotonic() - killed_at:.0f} s after the kill")
        for daemon, wanted in ((victim, "exited"), (survivor, "running healthy")):
            state = stack.state(daemon)
            if not state.startswith(wanted):
                raise Unclean(f"a daemon is {state} and not {wanted}")
        stack.engine.run("stop", "--time", "120", survivor)
        code = stack.engine.run("inspect", "--format", "{{.State.ExitCode}}", survivor)
    finally:
        log = stack.redemptions()
        outcomes = collections.Counter(line["outcome"] for line in log)
        refused = sum(outcomes.values()) - outcomes["granted"]
        summary = {
            "clients": CLIENTS, "killed": 1, "refreshes": outcomes["granted"], "after_kill": len(log) - before,
            "least_generations": watch.least() if watch.expiries else 0, "redeemed_twice": redeemed_twice(log),
            "refused": refused, "expired": len(early.expired | watch.expired), "seconds": round(time.monotonic() - begun),
        }
        print("summary", *(f"{name}={value}" for name, value in summary.items()), flush=True)
    if code != "0":
        raise Unclean(f"SIGTERM ended the other daemon with {code}")
    if summary["redeemed_twice"] or summary["refused"] or summary["expired"]:
        raise Unclean("the summary is not clean")


def main():
    engine = docker()
    names = {"PERENNIAL_IMAGE": "perennial:compose-test", "PROVIDER_IMAGE": "perennial-sample-provider:compose-test"}
    given = {name for name in names if os.environ.get(name)}
    client = compose(engine, {
        **{name: os.environ.get(name) or own for name, own in names.items()},
        "SAMPLE_CLIENTS": str(CLIENTS), "TOKEN_SECONDS": str(TOKEN_SECONDS),
        # Any that is free.
        "PROVIDER_PORT": "0", "DAEMON_1_PORT": "0", "DAEMON_2_PORT": "0",
    })
    if "PERENNIAL_IMAGE" not in given:
        build(engine, names["PERENNIAL_IMAGE"])
    if "PROVIDER_IMAGE" not in given:
        build(engine, names["PROVIDER_IMAGE"], "--file", "deploy/compose/provider.Dockerfile")
    stack = Stack(engine, client, f"perennial-test-{os.getpid()}")
    say(f"starting {stack.project} by compose {client.run('version', '--short')}")
    try:
        trial(stack)
    except Unclean as what:
        say(what)
        say(f"the logs end with\n{stack.logs()}")
        return 1
    finally:
        stack.down()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unclean as what:
        say(what)
        sys.exit(1)
