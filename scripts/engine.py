"""What the scripts that need a container engine have in common."""

import os
import shlex
import signal
import subprocess
import sys
import time

# Automake's code for a test that was skipped: nothing was tested, and nothing failed.
SKIPPED = 77
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


class Unclean(Exception):
    """Something is not as it has to be."""


def say(text):
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    print(f"{name}: {text}", file=sys.stderr, flush=True)


def skip(text):
    say(text)
    sys.exit(SKIPPED)


def wait_for(seconds, what, condition, every=1.0):
    """Until the condition gives something true, which is returned."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise Unclean(f"after {seconds} s still waiting until {what}")
        time.sleep(every)


class Program:
    """A command line client, and the words that every call of it begins with."""

    def __init__(self, words, environment=None):
        self.words = words
        self.environment = {**os.environ, **(environment or {})}

    def attempt(self, *arguments, **options):
        return subprocess.run(
            [*self.words, *arguments],
            cwd=ROOT, env=self.environment, text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )

    def run(self, *arguments, errors=False):
        """What it prints; on standard error, too, where that is asked for."""
        done = self.attempt(*arguments)
        if done.returncode != 0:
            raise Unclean(f"{' '.join(arguments[:3])}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return (done.stdout + (done.stderr if errors else "")).strip()

    def works(self, *arguments):
        try:
            return self.attempt(*arguments).returncode == 0
        except OSError:
            return False


def docker():
    """The engine's client: DOCKER names another one, as in DOCKER="docker -H unix:///run/other.sock"."""
    # Whoever ends a script wants what it has started to be taken down, as Ctrl-C has it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    client = Program(shlex.split(os.environ.get("DOCKER", "docker")))
    if not client.works("info"):
        skip('no container engine answers. Start one, or name its client: DOCKER="docker -H unix:///run/other.sock"')
    return client


def compose(engine, environment):
    """Compose for that engine, the plugin or the program of its own: COMPOSE names another one."""
    named = os.environ.get("COMPOSE")
    own = ["docker-compose", *engine.words[1:]]
    for words in [shlex.split(named)] if named else [[*engine.words, "compose"], own]:
        client = Program(words, environment)
        if client.works("version"):
            return client
    skip("neither `docker compose` nor `docker-compose` is installed. Install one, or name it: COMPOSE=docker-compose")


def build(engine, tag, *arguments):
    """Builds an image of this checkout. BUILD_BASE and RUNTIME_BASE name other bases, BUILD_ARGS adds to the call."""
    say(f"building {tag}")
    for base in ("BUILD_BASE", "RUNTIME_BASE", "SAMPLE_BASE"):
        if base in os.environ:
            arguments += ("--build-arg", f"{base}={os.environ[base]}")
    engine.run("build", *shlex.split(os.environ.get("BUILD_ARGS", "")), *arguments, "--tag", tag, ".")
    return tag
