#!/usr/bin/env python3
"""Runs the image as the task definition of ecs/perennial.yaml says, on this machine, over DynamoDB Local.

    scripts/run-as-ecs.py [NAME=VALUE]...        # make run-as-ecs; NAME=VALUE are the template's parameters

The stack is resolved by scripts/emulate-stack.py, and its table made in DynamoDB Local. Its containers are then started
in the order that they ask for, with exactly the definition's command, environment, user, processor and memory, read-only
root, capabilities, health check and stop timeout, in one network namespace, as those of a task on Fargate are. What only
AWS has is overridden, and nothing else: see `instead_of_aws`.

The service's task has to become healthy and ready, to fetch a token for every sample client, to write its metrics, to leave
its root as it was, and to end with 0 on the image's stop signal within its stop timeout. The scheduled task has to end
with 0 by itself.

Ends with a line that begins with `summary`. Exit code: 0 clean, 1 unclean, 77 where there is no engine.

From the environment: IMAGE (perennial:latest), PROVIDER_IMAGE (else it is built of this checkout), DYNAMODB_IMAGE,
DOCKER, BUILD_BASE, SAMPLE_BASE and BUILD_ARGS, as for scripts/compose-test.py.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

from engine import ROOT, Unclean, build, docker, say, wait_for

IMAGE = os.environ.get("IMAGE", "perennial:latest")
DYNAMODB_IMAGE = os.environ.get("DYNAMODB_IMAGE", "amazon/dynamodb-local:1.25.1")
CLIENTS = 6
PROGRAM = "/usr/local/bin/perennial"
PYTHON = os.path.join(ROOT, ".parts", "moto", "bin", "python")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}

# What the environment file in S3 would hold.
SETTINGS = (
    "PERENNIAL__PROVIDERS__SAMPLE__TOKEN_URL=http://127.0.0.1:8090/token\n"
    "PERENNIAL__PROVIDERS__SAMPLE__ALLOW_NETWORKS=127.0.0.0/8\n"
)


def as_fargate_sets():
    """The variables of the platform. Nobody answers there: what is asked of it is never needed to keep tokens fresh."""
    nobody = "http://127.0.0.1:9"
    return {
        "AWS_EXECUTION_ENV": "AWS_ECS_FARGATE",
        "ECS_CONTAINER_METADATA_URI_V4": f"{nobody}/v4/task",
        "ECS_AGENT_URI": f"{nobody}/api/task",
        "AWS_REGION": "us-east-1",
    }


def instead_of_aws():
    """DynamoDB Local for DynamoDB, which has neither keys nor protection; keys of it for the task's role."""
    return {
        **CREDENTIALS,
        "PERENNIAL__STORE__ENDPOINT": "http://127.0.0.1:8000",
        "PERENNIAL__STORE__KMS_KEY": "",
        "PERENNIAL__STORE__DELETION_PROTECTION": "false",
    }


class Task:
    """A task definition as containers of this engine, by the name of each."""

    def __init__(self, engine, name, resources, settings):
        self.engine, self.name, self.settings = engine, name, settings
        [definition] = [
            resource["properties"] for resource in resources.values() if resource["type"] == "AWS::ECS::TaskDefinition"
        ]
        self.cpus, self.memory = int(definition["Cpu"]) / 1024, int(definition["Memory"])
        self.containers = {container["Name"]: container for container in definition["ContainerDefinitions"]}

    def start(self, name, *how):
        return self.engine.run("run", *how, *self.options(self.containers[name]), IMAGE, *self.containers[name]["Command"])

    def options(self, container):
        linux = container["LinuxParameters"]
        # Limits of the task hold for all of its containers together; one works at a time.
        options = [
            f"--network=container:{self.name}-dynamodb", f"--cpus={self.cpus}", f"--memory={self.memory}m",
            f"--memory-swap={self.memory}m", f"--user={container['User']}", "--security-opt=no-new-privileges",
            "--log-opt=mode=" + container["LogConfiguration"]["Options"]["mode"],
        ]
        options += ["--read-only"] if container["ReadonlyRootFilesystem"] else []
        options += ["--init"] if linux["InitProcessEnabled"] else []
        options += [f"--cap-drop={capability}" for capability in linux["Capabilities"]["Drop"]]
        options += [f"--stop-timeout={container['StopTimeout']}"] if "StopTimeout" in container else []
        options += self.health(container.get("HealthCheck"))
        # In the order in which one wins over another; the definition's own win over its file.
        if container.get("EnvironmentFiles"):
            options += [f"--env-file={self.settings}"]
        own = {variable["Name"]: variable["Value"] for variable in container["Environment"]}
        for variables in (as_fargate_sets(), own, instead_of_aws()):
            options += [f"--env={name}={value}" for name, value in variables.items()]
        return options

    def health(self, check):
        """The client can only name a command for a shell. So the image's own has to be the definition's."""
        if check is None:
            return ["--no-healthcheck"]
        built_in = json.loads(self.engine.run("image", "inspect", "--format", "{{json .Config.Healthcheck.Test}}", IMAGE))
        if built_in != check["Command"]:
            raise Unclean(f"the image asks for its health by {built_in}, the task definition by {check['Command']}")
        return [
            f"--health-interval={check['Interval']}s", f"--health-timeout={check['Timeout']}s",
            f"--health-retries={check['Retries']}", f"--health-start-period={check['StartPeriod']}s",
        ]


class Trial:
    def __init__(self, engine, parameters):
        self.engine, self.parameters = engine, [f"Image={IMAGE}", *parameters]
        self.name = f"perennial-ecs-{os.getpid()}"
        self.begun = time.monotonic()

    def inspect(self, container, form):
        return self.engine.run("inspect", "--format", form, f"{self.name}-{container}")

    def surroundings(self):
        """DynamoDB, whose network the task joins, and a provider with granted clients."""
        provider = os.environ.get("PROVIDER_IMAGE") or build(
            self.engine, "perennial-sample-provider:run-as-ecs", "--file", "deploy/compose/provider.Dockerfile"
        )
        run = ("run", "--detach", "--label", self.name)
        self.engine.run(
            *run, "--name", f"{self.name}-dynamodb", "--publish", "127.0.0.1::8000", DYNAMODB_IMAGE,
            "-jar", "DynamoDBLocal.jar", "-inMemory", "-sharedDb",
        )
        self.engine.run(
            *run, "--name", f"{self.name}-provider", f"--network=container:{self.name}-dynamodb",
            "--volume", f"{self.name}:/samples", provider, "--listen=127.0.0.1:8090", "--lifetime-secs=3600",
            f"--sample-clients={CLIENTS}", "--sample-folder=/samples",
        )
        wait_for(60, "DynamoDB Local answers", lambda: self.asks("http://127.0.0.1:8000/"))
        wait_for(60, "the provider answers", lambda: self.asks("http://127.0.0.1:8090/control/stats"))

    def asks(self, url):
        """The HTTP status of an address in the task's network, none where nobody answers."""
        curl = ("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", url)
        answered = self.engine.attempt("exec", f"{self.name}-dynamodb", *curl).stdout
        return answered if answered not in ("", "000") else None

    def task(self, settings, *arguments):
        """The stack's task in one of its forms. Options of the emulator come first."""
        emulator = [PYTHON, os.path.join("scripts", "emulate-stack.py"), *arguments, *self.parameters]
        environment = {**os.environ, **CREDENTIALS, "AWS_DEFAULT_REGION": "us-east-1"}
        done = subprocess.run(emulator, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise Unclean(f"the stack was not created:\n{done.stderr}")
        return Task(self.engine, self.name, json.loads(done.stdout)["resources"], settings)

    def service(self, settings):
        port = self.engine.run("port", f"{self.name}-dynamodb", "8000/tcp").splitlines()[0].rsplit(":", 1)[1]
        task = self.task(settings, "--table-at", f"http://127.0.0.1:{port}")
        if not task.start("table", "--rm").endswith("is ready"):
            raise Unclean("the first container did not finish the table")
        self.register(task)
        started = time.monotonic()
        task.start("perennial", "--detach", "--name", f"{self.name}-perennial", "--label", self.name)
        wait_for(90, "the task is healthy", lambda: self.inspect("perennial", "{{.State.Health.Status}}") == "healthy")
        healthy = time.monotonic() - started
        wait_for(60, "the task is ready", lambda: self.asks("http://127.0.0.1:9464/readyz") == "200")
        wait_for(60, "every client has a token", lambda: self.granted() == CLIENTS)
        say("healthy and ready, with a token for each client; stopping it")
        used = self.engine.run("stats", "--no-stream", "--format", "{{.MemUsage}}", f"{self.name}-perennial")
        written = self.engine.run("diff", f"{self.name}-perennial")
        begun = time.monotonic()
        self.engine.run("stop", f"{self.name}-perennial")
        took = time.monotonic() - begun
        code, killed = self.inspect("perennial", "{{.State.ExitCode}} {{.State.OOMKilled}}").split()
        if (code, killed, written) != ("0", "false", ""):
            raise Unclean(f"it ended with {code}, out of memory: {killed}, having written: {written or 'nothing'}")
        return {
            "cpus": task.cpus, "memory_mib": task.memory, "used": used.split(" ")[0], "healthy_after": f"{healthy:.0f}s",
            "clients": CLIENTS, "metric_lines": self.metric_lines(), "stopped_in": f"{took:.1f}s", "exit": code,
        }

    def register(self, task):
        """As an operator would, with the task's own environment."""
        task.containers["operator"] = {**task.containers["perennial"], "Command": ["clients", "apply", "/samples/clients.toml"]}
        task.start("operator", "--rm", "--volume", f"{self.name}:/samples:ro")

    def granted(self):
        lines = self.engine.run("exec", f"{self.name}-perennial", PROGRAM, "clients", "list", "--json").splitlines()
        return sum(json.loads(line)["expires_at"] is not None for line in lines)

    def metric_lines(self):
        """What CloudWatch would take its metrics from; the last of them are written as the task ends."""
        lines = self.engine.run("logs", f"{self.name}-perennial").splitlines()
        lines = [line for line in map(json.loads, lines) if "_aws" in line]
        if not any(line.get("Ready") == 1 for line in lines):
            raise Unclean("it has written no metric by which it is ready")
        return len(lines)

    def scheduled(self, settings):
        task = self.task(settings, "Mode=Scheduled")
        task.start("table", "--rm")
        # Anything but 0 is an error of `docker run`.
        task.start("perennial", "--rm")
        return {"scheduled_exit": 0}

    def logs(self):
        done = self.engine.attempt("logs", "--tail", "40", f"{self.name}-perennial")
        return done.stdout + done.stderr

    def down(self):
        mine = self.engine.run("ps", "--all", "--quiet", "--filter", f"label={self.name}").split()
        if mine:
            self.engine.attempt("rm", "--force", *mine)
        self.engine.attempt("volume", "rm", self.name)


def main(parameters):
    engine = docker()
    if not engine.works("image", "inspect", IMAGE):
        raise Unclean(f"there is no image {IMAGE}. Build it: make image")
    if not os.path.exists(PYTHON):
        raise Unclean("the emulator is missing. Fetch it: scripts/parts.sh")
    trial = Trial(engine, parameters)
    with tempfile.NamedTemporaryFile("w", suffix=".env") as settings:
        settings.write(SETTINGS)
        settings.flush()
        try:
            trial.surroundings()
            found = {"image": IMAGE, **trial.service(settings.name), **trial.scheduled(settings.name)}
        except Unclean:
            say(f"the task's log ends with\n{trial.logs()}")
            raise
        finally:
            trial.down()
    print("summary", *(f"{name}={value}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Unclean as what:
        say(what)
        sys.exit(1)
