"""The examples for containers and CI, checked with the schemas that check-jsonschema brings, and by their contents."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from aibridge_addon.config.load import load
from aibridge_addon.config.schema import Settings
from aibridge_addon.config.stop import AFTER_DRAIN
from tests.support.image import stages
from tests.support.prometheus import program

DOCS = Path(__file__).parents[2] / "docs"
DEPLOY = DOCS / "deploy"
CHECK = Path(sys.executable).with_name("check-jsonschema")
CI_ENVIRONMENT = {"CI_ACTOR": "ada", "CI_REPOSITORY": "o/r", "CI_RUN": "7", "CI_PULL_REQUEST": ""}


def check(schema: str, file: Path) -> None:
    ended = subprocess.run(
        [CHECK, "--no-cache", "--builtin-schema", f"vendor.{schema}", file], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def yaml_blocks(page: str) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def documents(name: str) -> list[Any]:
    return list(YAML(typ="safe").load_all(DEPLOY / "kubernetes" / name))


def kind(name: str, which: str) -> Any:
    [found] = [document for document in documents(name) if document["kind"] == which]
    return found


def settings(text: str, tmp_path: Path, **environ: str) -> Settings:
    file = tmp_path / "aibridge.yaml"
    file.write_text(text)
    return load(file, environ=environ, database=None)


# --- CI ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "schema"), [(1, "github-workflows"), (2, "gitlab-ci")])
def test_a_job_is_valid(tmp_path: Path, number: int, schema: str) -> None:
    file = tmp_path / "job.yml"
    file.write_text(yaml_blocks("ci.md")[number])
    check(schema, file)


def test_the_configuration_of_a_job_names_where_it_ran_and_has_a_budget(tmp_path: Path) -> None:
    loaded = settings(yaml_blocks("ci.md")[0], tmp_path, **CI_ENVIRONMENT)
    assert loaded.actor.default == "ada"
    assert loaded.actor.metadata == {"repository": "o/r", "run": "7", "pull_request": "none"}
    assert [budget.name for budget in loaded.budgets] == ["job"]
    assert loaded.metrics.listen is None


@pytest.mark.parametrize("number", [1, 2])
def test_each_job_sets_every_variable_of_the_configuration(number: int) -> None:
    configuration, *jobs = yaml_blocks("ci.md")
    needed = set(re.findall(r"\$\{(\w+)", configuration))
    assert needed == set(CI_ENVIRONMENT)
    assert needed <= set(re.findall(r"^ +(\w+):", jobs[number - 1], re.MULTILINE))


# --- the image and Compose --------------------------------------------------------------------------------------------


def test_the_image_runs_as_an_unprivileged_user_with_a_health_check() -> None:
    build, image = stages((DEPLOY / "Containerfile").read_text())
    assert build.base == image.base and re.search(r":\d+\.\d+\.\d+-", image.base), "a pinned version"
    assert image.last("USER") == "10001:10001"
    assert "/healthz" in image.last("HEALTHCHECK")
    assert "--constraint constraints.txt" in build.last("RUN")
    names = [name for name, _ in image.steps]
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :]), "the user owns nothing of the program"


def test_the_compose_file_is_valid_and_hardened() -> None:
    check("compose-spec", DEPLOY / "compose.yaml")
    services = YAML(typ="safe").load(DEPLOY / "compose.yaml")["services"]
    bridge = services["aibridge"]
    assert bridge["read_only"] is True and bridge["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    assert all(re.search(r":v?\d+\.\d+", service.get("image", ":1.0")) for service in services.values())
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).is_file(), source


def test_the_configuration_of_compose_requires_an_actor_and_drains_before_it_is_killed(tmp_path: Path) -> None:
    loaded = settings((DEPLOY / "aibridge.yaml").read_text(), tmp_path, POSTGRES_PASSWORD="secret")
    grace = YAML(typ="safe").load(DEPLOY / "compose.yaml")["services"]["aibridge"]["stop_grace_period"]
    assert loaded.actor.required
    assert int(grace.removesuffix("s")) >= loaded.drain_timeout + AFTER_DRAIN


def test_the_scrape_configuration_of_compose_is_valid() -> None:
    arguments = [program("promtool"), "check", "config", "--syntax-only", "prometheus.yml"]
    ended = subprocess.run(arguments, cwd=DEPLOY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def test_a_gateway_is_ready_alive_and_drains_before_it_is_killed(tmp_path: Path) -> None:
    config = kind("gateway.yaml", "ConfigMap")["data"]["aibridge.yaml"]
    loaded = settings(config, tmp_path, AIBRIDGE_DATABASE="postgresql://u:p@h/d")
    assert loaded.actor.required
    pod = kind("gateway.yaml", "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert loaded.metrics.listen is not None and loaded.metrics.listen.port == ports["metrics"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/healthz",
    }
    assert {probe["port"] for probe in probes.values()} == {"metrics"}
    paused = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= paused + loaded.drain_timeout + AFTER_DRAIN


def test_a_sidecar_is_ready_before_the_agent_and_ends_after_it(tmp_path: Path) -> None:
    config = kind("sidecar.yaml", "ConfigMap")["data"]["aibridge.yaml"]
    loaded = settings(config, tmp_path, AIBRIDGE_DATABASE="postgresql://u:p@h/d", AIBRIDGE_ACTOR="team")
    pod = kind("sidecar.yaml", "Job")["spec"]["template"]["spec"]
    [sidecar], [agent] = pod["initContainers"], pod["containers"]
    assert sidecar["restartPolicy"] == "Always" and "startupProbe" in sidecar
    assert sidecar["securityContext"]["runAsUser"] != agent["securityContext"]["runAsUser"], "the CA's key is private"
    assert sidecar["args"][:2] == ["--listen-host", "127.0.0.1"]
    assert pod["terminationGracePeriodSeconds"] >= loaded.drain_timeout + AFTER_DRAIN


@pytest.mark.parametrize(("name", "which"), [("gateway.yaml", "Deployment"), ("sidecar.yaml", "Job")])
def test_every_container_is_hardened(name: str, which: str) -> None:
    pod = kind(name, which)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
