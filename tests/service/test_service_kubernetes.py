"""The manifests in deploy/kubernetes: valid, locked down, and in agreement with the service."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import ENV_PREFIX, Settings
from tests.service.conftest import Served

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
COMPONENTS = sorted(path.name for path in (FOLDER / "components").iterdir())
KUBERNETES = ("1.31", "1.37")
"""Oldest and newest version that the manifests are checked against."""

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders the manifests")


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")))


def render(folder: Path, *components: str) -> dict[str, dict[str, Any]]:
    """Return the objects by kind that `kubectl apply -k` would create with these components."""
    overlay = {"resources": [str(FOLDER)], "components": [str(FOLDER / "components" / name) for name in components]}
    paths = {key: [f"{'../' * len(folder.parts[1:])}{path[1:]}" for path in value] for key, value in overlay.items()}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(paths))
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60)
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}


def check_restricted(pod: dict[str, Any]) -> None:
    """Check the Pod Security Standard `restricted`, and what goes beyond it here."""
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    assert all(set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} == set(container["resources"]["limits"])
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    return read("deployment.yaml")


@pytest.fixture(scope="module")
def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


@needs_kubectl
@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("components", [(), *((name,) for name in COMPONENTS), tuple(COMPONENTS)], ids="+".join)
def test_what_is_applied_is_valid_and_locked_down(tmp_path: Path, components: tuple[str, ...], version: str) -> None:
    objects = render(tmp_path, *components)
    kinds = {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    assert set(objects) == kinds | ({"HorizontalPodAutoscaler"} if "autoscaling" in components else set())
    for manifest in objects.values():
        kubernetes_validate.validate(manifest, version, strict=True)
    pod = objects["Deployment"]["spec"]["template"]
    check_restricted(pod["spec"])
    for chosen in (
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert chosen
        assert chosen.items() <= pod["metadata"]["labels"].items()


@needs_kubectl
def test_bundles_come_from_the_volume_or_the_image(tmp_path: Path) -> None:
    base = render(tmp_path)["Deployment"]["spec"]["template"]["spec"]
    (models,) = (volume for volume in base["volumes"] if volume["name"] == "models")
    assert models["persistentVolumeClaim"] == {"claimName": "transferapp-models", "readOnly": True}
    pod = render(tmp_path, "bundle-image")["Deployment"]["spec"]["template"]["spec"]
    (models,) = (volume for volume in pod["volumes"] if volume["name"] == "models")
    assert set(models) == {"name", "emptyDir"}
    assert pod["initContainers"][0]["image"].startswith("registry.example/transferapp-bundles:")


@needs_kubectl
def test_the_autoscaler_owns_the_number_of_pods(tmp_path: Path) -> None:
    objects = render(tmp_path, "autoscaling")
    assert "replicas" not in objects["Deployment"]["spec"]
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])


def test_every_file_is_named_by_a_kustomization() -> None:
    for file in FOLDER.rglob("kustomization.yaml"):
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        patches = [patch["path"] for patch in document.get("patches", []) if "path" in patch]
        others = {path.name for path in file.parent.glob("*.yaml")} - {file.name}
        assert {*document.get("resources", []), *patches} == others


def test_the_image_is_the_projects_version() -> None:
    (image,) = read("kustomization.yaml")["images"]
    assert f'version = "{image["newTag"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_user_and_port_are_those_of_the_dockerfile(deployment: dict[str, Any], container: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    security = deployment["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in dockerfile
    assert f"EXPOSE {container['ports'][0]['containerPort']}" in dockerfile
    paths = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert paths == {"/models", "/tmp"}
    assert "TRANSFERAPP_MODELS=/models" in dockerfile


def test_environment_names_settings_and_the_pod_outlives_its_drain(
    deployment: dict[str, Any], container: dict[str, Any]
) -> None:
    values = {entry["name"].removeprefix(ENV_PREFIX).lower(): entry["value"] for entry in container["env"]}
    assert set(values) <= set(Settings.model_fields)
    settings = Settings(**values)
    ended = settings.drain_notice_seconds + settings.drain_seconds
    assert ended < deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] <= settings.drain_notice_seconds


def test_memory_holds_the_worst_case(container: dict[str, Any]) -> None:
    limits = container["resources"]["limits"]
    needed = 260e6 + Settings().max_buffered_bytes + 360e6 * int(limits["cpu"])  # docs/service.md
    assert needed < int(limits["memory"].removesuffix("Mi")) * 2**20 < 1.25 * needed


def test_probes_and_scaled_metrics_are_answered(service: Served, container: dict[str, Any]) -> None:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert service.client.get(container[name]["httpGet"]["path"]).status_code == 200
    exposed = service.client.get("/metrics").text
    autoscaler = read("components/autoscaling/autoscaler.yaml")
    names = [metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]]
    assert names == ["transferapp_queue_running", "transferapp_queue_waiting"]
    assert all(f"\n{name} 0.0\n" in exposed for name in names)


def test_liveness_does_not_ask_for_the_model(
    serve: Callable[..., Served], tmp_path: Path, container: dict[str, Any]
) -> None:
    served = serve(wait=False, models=tmp_path)
    assert served.client.get(container["livenessProbe"]["httpGet"]["path"]).status_code == 200
    assert served.client.get(container["readinessProbe"]["httpGet"]["path"]).status_code == 503
