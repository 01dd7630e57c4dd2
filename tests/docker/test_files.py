"""What is deployed: files that are valid, confine what they start, and call commands that exist.

Whether the images run is what `make container-test` shows.
"""

import re
import shutil
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from arion.cli import PARTS

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
NEWEST_KUBERNETES = kubernetes_validate.latest_version()
UNITS = sorted((DOCKER / "systemd").glob("*.service"))
MANIFESTS = list(yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text()))
SERVICES: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
NODES = {name: it for name, it in SERVICES.items() if it["image"] == "arion-node"}


def pods() -> Iterator[dict[str, Any]]:
    for manifest in MANIFESTS:
        spec = manifest.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield spec["template"]["spec"]


def test_the_dockerfile_has_no_findings() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    found = subprocess.run(
        [linter, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_the_image_has_the_torch_that_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = (name for name in project["dependencies"] if name.startswith("torch"))
    assert f"\n    {torch}\n" in (DOCKER / "Dockerfile").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert not {"privileged", "cap_add", "environment", "env_file", "user"} & service.keys()


def test_four_nodes_reach_the_coordinator_alone() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert len(NODES) == 4
    assert all(
        node["networks"] == ["federation"] and "ports" not in node for node in NODES.values()
    )
    assert compose["networks"]["federation"] == {"internal": True}
    assert SERVICES["database"]["network_mode"] == "none"


@pytest.mark.parametrize("name", NODES)
def test_no_node_sees_another_ones_home_or_text(name: str) -> None:
    home, text, base = NODES[name]["volumes"]
    assert home == f"{name}:/data"
    assert text.endswith(f"/{name}:/text:ro")
    assert base.endswith(":/base:ro")


@pytest.mark.parametrize(
    "manifest", MANIFESTS, ids=lambda m: f"{m['kind']}-{m['metadata']['name']}"
)
def test_manifests_are_of_kubernetes_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, NEWEST_KUBERNETES, strict=True)


def test_a_misspelt_manifest_is_noticed() -> None:
    manifest = {**MANIFESTS[0], "metdata": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, NEWEST_KUBERNETES, strict=True)


@pytest.mark.parametrize("pod", pods(), ids=lambda pod: pod["containers"][0]["name"])
def test_a_pod_is_confined(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        volumes = {volume["name"] for volume in pod["volumes"]} | {"data"}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert "env" not in container


def test_what_no_policy_allows_is_denied() -> None:
    policies = {m["metadata"]["name"]: m["spec"] for m in MANIFESTS if m["kind"] == "NetworkPolicy"}
    everything = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert policies["nothing-else"] == everything
    assert policies["node"]["policyTypes"] == ["Egress"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_confined(unit: Path) -> None:
    """By systemd's own score, of ten; 9.6 is a unit that says nothing."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", unit]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-200:]


def test_keys_of_epochs_outlive_a_nodes_process() -> None:
    """They lie in /dev/shm, which systemd would clear of what the unit's user has there."""
    assert "\nRemoveIPC=no\n" in (DOCKER / "systemd" / "arion-node.service").read_text()
    (node,) = (
        container
        for pod in pods()
        for container in pod["containers"]
        if any(mount["mountPath"] == "/dev/shm" for mount in container["volumeMounts"])
    )
    assert "node" in node["args"]


def commands() -> Iterator[str]:
    """Every command of ours that the files name, in any of the forms that they have."""
    for path in (
        DOCKER / "Dockerfile",
        DOCKER / "compose.yaml",
        DOCKER / "kubernetes.yaml",
        *UNITS,
    ):
        text = re.sub(r'[][",]', " ", path.read_text())
        yield from re.findall(r"(?:\barion|CMD|args:) +((?:coordinator|node) +[a-z-]+)\b", text)


def documented() -> Iterator[str]:
    """Every command of ours that the pages on running it name."""
    for page in ("deploy.md", "service.md"):
        text = (ROOT / "docs" / page).read_text()
        yield from re.findall(r"\barion ((?:auditor|coordinator|node|run) [a-z-]+)\b", text)
        yield from re.findall(r"--rm(?: --no-deps)? [a-z]+ ((?:coordinator|node) [a-z-]+)\b", text)


@pytest.mark.parametrize(
    "words", sorted({" ".join(found.split()) for found in (*commands(), *documented())})
)
def test_the_commands_exist(words: str) -> None:
    part, name = words.split()
    group = PARTS[part].load(part)
    assert isinstance(group, click.Group)
    assert name in group.list_commands(click.Context(group))


def test_files_call_what_they_should() -> None:
    called = {" ".join(found.split()) for found in commands()}
    assert {"coordinator serve", "coordinator health", "coordinator init", "coordinator backup",
            "node run", "node doctor"} == called  # fmt: skip


def test_what_was_not_run_does_not_look_like_what_passed(tmp_path: Path) -> None:
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    found = subprocess.run(
        [tmp_path / "bash", DOCKER / "test.sh"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (77, "")
    assert found.stderr.startswith("not run: neither")
