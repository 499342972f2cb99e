"""The manifests are valid, and say what this version of Icarus understands. kustomize itself is not run."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from icarus.cli.flags import read_config
from icarus.cli.parser import build_parser

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.33"
MANIFESTS = sorted(FOLDER.glob("base/[!k]*.yaml"))
DOCUMENTS = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
WORKLOADS = {d["metadata"]["name"]: d["spec"] for d in DOCUMENTS if d["kind"] != "Service"}
BASE = yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text())
GPU = yaml.safe_load((FOLDER / "gpu/kustomization.yaml").read_text())


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path):
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_kustomizations_name_every_file():
    assert sorted(BASE["resources"]) == [path.name for path in MANIFESTS]
    assert [name for generator in BASE["configMapGenerator"] for name in generator["files"]] == ["icarus.toml"]
    assert {path.name for path in FOLDER.glob("base/*")} == {*BASE["resources"], "icarus.toml", "kustomization.yaml"}
    assert [patch["path"] for patch in GPU["patches"]] == ["worker.yaml"]
    images = {container["image"] for spec in WORKLOADS.values() for container in containers(spec)}
    assert {image["name"] for image in BASE["images"]} == images >= {image["name"] for image in GPU["images"]}


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_pod(name):
    """Its command is understood, its ports and probes agree with the settings, it is not root and has limits."""
    pod = WORKLOADS[name]["template"]["spec"]
    (main,) = pod["containers"]
    args = build_parser().parse_args(main["args"])
    args.config = FOLDER / "base/icarus.toml"
    config = read_config(args)
    port = int((config.gateway if name == "gateway" else config.worker).address.rpartition(":")[2])
    ports = {entry["name"]: entry["containerPort"] for entry in main["ports"]}
    assert ports == {"grpc": port, "metrics": int(config.metrics.address.rpartition(":")[2])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert main[probe]["grpc"] == {"port": port}
    (model,) = pod["initContainers"]
    assert build_parser().parse_args(model["args"]).folder == config.model.path
    assert pod["securityContext"]["runAsNonRoot"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (main, model):
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_services_lead_to_pods():
    for service in (document for document in DOCUMENTS if document["kind"] == "Service"):
        found = [
            spec
            for spec in WORKLOADS.values()
            if service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
        ]
        assert len(found) == 1
        assert found[0]["selector"]["matchLabels"].items() <= found[0]["template"]["metadata"]["labels"].items()
        names = {port["name"] for port in found[0]["template"]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_pods_are_scraped_under_the_jobs_that_rules_and_dashboards_know():
    """What the relabelling of prometheus.yml makes of each pod's labels. Debian's promtool knows no Kubernetes."""
    (scraped,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    jobs = {}
    for name, spec in WORKLOADS.items():
        labels = {re.sub(r"\W", "_", key): value for key, value in spec["template"]["metadata"]["labels"].items()}
        meta = {f"__meta_kubernetes_pod_label_{key}": value for key, value in labels.items()}
        meta["__meta_kubernetes_pod_container_port_name"] = "metrics"
        meta["__meta_kubernetes_pod_name"] = name
        for rule in scraped["relabel_configs"]:
            value = ";".join(meta.get(source, "") for source in rule["source_labels"])
            matches = re.fullmatch(rule.get("regex", "(.*)"), value)
            if rule.get("action") == "keep":
                assert matches, name
            elif matches:
                meta[rule["target_label"]] = matches[1]
        jobs[name] = meta["job"]
        assert meta["instance"] == name
    assert jobs == {"gateway": "gateway", "prefill": "prefill", "decode": "decode"}


def test_the_gpu_patch_fits_the_workers():
    component, _, value = GPU["patches"][0]["target"]["labelSelector"].partition("=")
    targets = [s for s in WORKLOADS.values() if s["template"]["metadata"]["labels"][component] == value]
    assert len(targets) == 2
    for operation in yaml.safe_load((FOLDER / "gpu/worker.yaml").read_text()):
        *parents, last = operation["path"].removeprefix("/spec/").split("/")
        for place in targets:
            for key in parents:
                place = place[int(key) if isinstance(place, list) else key]
            assert last == "-" if isinstance(place, list) else last.replace("~1", "/") not in place


def containers(spec: dict) -> list[dict]:
    return spec["template"]["spec"]["containers"] + spec["template"]["spec"]["initContainers"]
