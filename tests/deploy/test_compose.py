"""docker-compose.yml says what this version of Icarus understands, and what it promises."""

import re
from pathlib import Path

import pytest
import yaml

from icarus.cli.flags import read_config
from icarus.cli.parser import build_parser
from icarus.config import Config, load_config

ROOT = Path(__file__).parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("icarus-")}
BASE_IMAGE = "python:3.11-slim-bookworm"
SERVING = {name: service for name, service in OURS.items() if service.get("command", [""])[0] == "serve"}
ON = {profile: [n for n, s in SERVING.items() if s.get("profiles") == [profile]] for profile in ("cpu", "gpu")}


def with_defaults(text: str) -> str:
    """What compose makes of ${NAME:-default} where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def settings(service: dict) -> Config:
    """What the container's command line and its file come to."""
    args = build_parser().parse_args([with_defaults(word) for word in service["command"]])
    args.config = ROOT / "deploy/compose/icarus.toml"
    return read_config(args)


def test_the_default_profile_is_the_cpu():
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text().splitlines()
    assert ON == {
        "cpu": ["prefill", "decode-0", "decode-1"],
        "gpu": ["prefill-gpu", "decode-0-gpu", "decode-1-gpu"],
    }
    for name in ON["cpu"]:  # so that both at once are refused, rather than displace each other at the gateway
        names = [with_defaults(SERVICES[each]["container_name"]) for each in (name, f"{name}-gpu")]
        assert names == [f"icarus-{name}"] * 2
    everywhere = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert everywhere == {"model", "namespaces", "gateway", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVING)
def test_every_command_is_understood(name):
    config = settings(SERVING[name])
    assert config.metrics.address.endswith(":9400")
    assert (
        config.model.path == "/models/smollm2" == SERVICES["model"]["command"][-1].replace("${ICARUS_MODEL:-", "")[:-1]
    )
    if name != "gateway":
        host = name.removesuffix("-gpu")
        assert (config.worker.id, config.worker.advertise) == (host, f"{host}:7081")
        assert config.model.device == ("cuda" if name.endswith("-gpu") else "cpu")


def test_workers_register_at_a_port_that_is_not_published():
    config = settings(SERVICES["gateway"]).gateway
    registration, clients = (address.rpartition(":")[2] for address in (config.worker_address, config.address))
    assert [with_defaults(port) for port in SERVICES["gateway"]["ports"]] == [f"127.0.0.1:{clients}:{clients}"]
    assert registration != clients
    for name in SERVING.keys() - {"gateway"}:
        assert settings(SERVING[name]).worker.gateways == (f"gateway:{registration}",)


def test_the_model_service_is_understood():
    args = build_parser().parse_args([with_defaults(word) for word in SERVICES["model"]["command"]])
    assert (args.model, args.folder) == ("smollm2", "/models/smollm2")


def test_prometheus_scrapes_every_service():
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in jobs for group in job["static_configs"] for target in group["targets"]}
    assert targets == {f"{name}:9400" for name in ("gateway", *ON["cpu"])}
    for name in ON["gpu"]:
        assert SERVICES[name]["networks"]["default"]["aliases"] == [name.removesuffix("-gpu")]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service(name):
    """Pinned, started again when it ends, mounts that exist, no secret, and reachable from this machine alone."""
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+\.\d+", service["image"]) or service["image"] == BASE_IMAGE
    assert service["logging"]["options"] == {"max-size": "50m", "max-file": "3"}
    assert service["restart"] in ("unless-stopped", "on-failure:3")
    assert name in ("model", "namespaces") or service["healthcheck"]["test"][0] == "CMD"
    for port in service.get("ports", ()):
        assert with_defaults(port).startswith("127.0.0.1:")
    for volume in service.get("volumes", ()):
        source = with_defaults(volume).split(":")[0]
        assert source in ("models", "sessions", "prometheus", "grafana") or (ROOT / source).exists()
    if "build" in service:
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert not re.search(r"(?i)password[^A-Z]*[:=]", yaml.safe_dump(service))


def test_sessions_survive_a_new_container():
    folder = settings(SERVICES["gateway"]).gateway.session_file.rpartition("/")[0]
    assert f"sessions:{folder}" in SERVICES["gateway"]["volumes"]
    assert f"install -d -o icarus /models {folder}\n" in (ROOT / "services/gateway/Dockerfile").read_text()


def test_gpu_workers_reserve_a_card_and_share_memory():
    for name in ON["gpu"]:
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"] and with_defaults(device["device_ids"][0]) == "0"
        assert SERVICES[name]["ulimits"] == {"memlock": -1}
    for name in (*ON["cpu"], *ON["gpu"]):
        assert (
            with_defaults(SERVICES[name]["ipc"])
            == with_defaults(SERVICES[name]["pid"])
            == "container:icarus-namespaces"
        )
    assert with_defaults(SERVICES["namespaces"]["container_name"]) == "icarus-namespaces"


def test_a_new_release_leaves_the_namespaces_alone():
    """Compose makes a container anew when its image changes, and that of `namespaces` ends all workers."""
    namespaces = SERVICES["namespaces"]
    assert namespaces["image"] == BASE_IMAGE and "build" not in namespaces
    for name in OURS:
        last = [
            line for line in (ROOT / SERVICES[name]["build"]["dockerfile"]).read_text().splitlines() if "FROM" in line
        ]
        assert last[-1] == f"FROM {BASE_IMAGE}"


def test_the_settings_file_stands_alone():
    load_config(ROOT / "deploy/compose/icarus.toml")
