"""The manifests are valid, and say what this version of Icarus understands. kustomize itself is not run."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from icarus.cli.flags import read_config
from icarus.cli.parser import build_parser
from icarus.config import load_config

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.33"
MANIFESTS = sorted(FOLDER.glob("base/[!k]*.yaml"))
DOCUMENTS = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
WORKLOADS = {d["metadata"]["name"]: d["spec"] for d in DOCUMENTS if d["kind"] in ("Deployment", "StatefulSet")}
POD_LABELS = {name: spec["template"]["metadata"]["labels"] for name, spec in WORKLOADS.items()}
WORKERS = [name for name in WORKLOADS if name != "gateway"]
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
    port = port_of((config.gateway if name == "gateway" else config.worker).address)
    ports = {entry["name"]: entry["containerPort"] for entry in main["ports"]}
    assert ports.pop("workers", None) == (port_of(config.gateway.worker_address) if name == "gateway" else None)
    assert ports == {"grpc": port, "metrics": port_of(config.metrics.address)}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert main[probe]["grpc"] == {"port": port} and main[probe]["timeoutSeconds"] == 5
    (model,) = pod["initContainers"]
    assert build_parser().parse_args(model["args"]).folder == config.model.path
    (token,) = (entry["valueFrom"]["secretKeyRef"] for entry in model["env"] if entry["name"] == "HF_TOKEN")
    assert token == {"name": "huggingface", "key": "token", "optional": True}
    assert pod["securityContext"]["runAsNonRoot"]
    if name != "gateway":
        assert int(main["resources"]["limits"]["cpu"]) == config.engine.num_threads + 1
        (spread,) = pod["topologySpreadConstraints"]
        assert selected(spread["labelSelector"]) == [name]
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume)
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (main, model):
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_sessions_survive_a_new_pod():
    pod = WORKLOADS["gateway"]["template"]["spec"]
    (claim,) = (document for document in DOCUMENTS if document["kind"] == "PersistentVolumeClaim")
    (volume,) = (volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume)
    (mount,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == volume["name"])
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert load_config(FOLDER / "base/icarus.toml").gateway.session_file.startswith(mount["mountPath"] + "/")
    assert WORKLOADS["gateway"]["strategy"] == {"type": "Recreate"}, "first the old pod lets go of the file"


def test_workers_register_where_no_client_is_served():
    """At a Service of its own, whose one port the gateway listens at for them alone."""
    config = load_config(FOLDER / "base/icarus.toml")
    services = {d["metadata"]["name"]: d["spec"]["ports"] for d in DOCUMENTS if d["kind"] == "Service"}
    (registration,) = services["gateway-workers"]
    assert config.worker.gateways == (f"gateway-workers:{registration['port']}",)
    assert registration["port"] == port_of(config.gateway.worker_address) != port_of(config.gateway.address)
    assert [port["port"] for port in services["gateway"]] == [port_of(config.gateway.address)]


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


def test_a_second_gateway_is_another():
    """A session is one gateway's, so no Service may lead to a copy's pods; who may reach it is as with the first."""
    label = {"icarus/gateway": "b"}
    labels = POD_LABELS["gateway"] | label
    assert POD_LABELS["gateway"].keys() >= label.keys()
    selectors = [d["spec"]["selector"] for d in DOCUMENTS if d["kind"] == "Service"]
    for selector in (*selectors, WORKLOADS["gateway"]["selector"]["matchLabels"]):
        assert not selector.items() <= labels.items()
    for policy in (d["spec"]["podSelector"]["matchLabels"] for d in DOCUMENTS if d["kind"] == "NetworkPolicy"):
        assert (policy.items() <= labels.items()) == (policy.items() <= POD_LABELS["gateway"].items())


def test_who_may_reach_what():
    """Gateways and workers all of a worker, Prometheus the metrics; of the gateway workers the one port, labelled
    clients the other."""
    config = load_config(FOLDER / "base/icarus.toml")
    everybody, workers, gateway = (d["spec"] for d in DOCUMENTS if d["kind"] == "NetworkPolicy")
    assert selected(everybody["podSelector"]) == list(WORKLOADS)
    (prometheus,) = everybody["ingress"]
    assert ports_of(prometheus) == [port_of(config.metrics.address)]
    assert selected(workers["podSelector"]) == WORKERS
    (peers,) = workers["ingress"]
    assert selected(peers["from"][0]["podSelector"]) == list(WORKLOADS) and "ports" not in peers
    assert selected(gateway["podSelector"]) == ["gateway"]
    registering, clients = gateway["ingress"]
    assert selected(registering["from"][0]["podSelector"]) == WORKERS
    assert ports_of(registering) == [port_of(config.gateway.worker_address)]
    assert ports_of(clients) == [port_of(config.gateway.address)]
    for rule in (prometheus, clients):
        assert selected(rule["from"][0]["podSelector"]) == []


def test_one_worker_at_a_time_is_evicted():
    (budget,) = (d["spec"] for d in DOCUMENTS if d["kind"] == "PodDisruptionBudget")
    assert budget["maxUnavailable"] == 1
    assert sorted(selected(budget["selector"])) == ["decode", "prefill"]


def test_pods_are_scraped_under_the_jobs_that_rules_and_dashboards_know():
    """What the relabelling of prometheus.yml makes of each pod's labels. Debian's promtool knows no Kubernetes."""
    made = {name: relabelled(pod_meta(name, "Running")) for name in WORKLOADS}
    assert {name: meta and meta["job"] for name, meta in made.items()} == {name: name for name in WORKLOADS}
    assert {name: meta and meta["instance"] for name, meta in made.items()} == {
        name: f"ns/{name}" for name in WORKLOADS
    }
    assert relabelled(pod_meta("decode", "Failed")) is None
    assert scrape_config()["scrape_interval"] == "5s"


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


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def ports_of(rule: dict) -> list[int]:
    return [entry["port"] for entry in rule["ports"]]


def selected(selector: dict) -> list[str]:
    """Workloads whose pods have all labels of the selector."""
    return [name for name, labels in POD_LABELS.items() if selector["matchLabels"].items() <= labels.items()]


def scrape_config() -> dict:
    (scraped,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    return scraped


def pod_meta(name: str, phase: str) -> dict[str, str]:
    """What Prometheus knows of a pod's metrics port."""
    labels = {re.sub(r"\W", "_", key): value for key, value in POD_LABELS[name].items()}
    meta = {f"__meta_kubernetes_pod_label_{key}": value for key, value in labels.items()}
    meta["__meta_kubernetes_pod_container_port_name"] = "metrics"
    meta["__meta_kubernetes_namespace"] = "ns"
    return {**meta, "__meta_kubernetes_pod_name": name, "__meta_kubernetes_pod_phase": phase}


def relabelled(meta: dict[str, str]) -> dict[str, str] | None:
    """None where it is not kept."""
    for rule in scrape_config()["relabel_configs"]:
        value = rule.get("separator", ";").join(meta.get(source, "") for source in rule["source_labels"])
        matches = re.fullmatch(rule.get("regex", "(.*)"), value)
        if rule.get("action") == "keep" and not matches:
            return None
        if rule.get("action") != "keep" and matches:
            meta = {**meta, rule["target_label"]: matches[1]}
    return meta


def containers(spec: dict) -> list[dict]:
    return spec["template"]["spec"]["containers"] + spec["template"]["spec"]["initContainers"]
