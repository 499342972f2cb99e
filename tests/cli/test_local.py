"""A deployment of real processes on this machine: it starts, it says why it did not, and nothing of it stays."""

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest
import tiny
from waiting import wait_until

from icarus.cli.local import LocalCluster, _metrics_addresses, unheeded
from icarus.client import Client
from icarus.config import Config, EngineSection, GatewaySection, MetricsSection, ModelSection, WorkerSection
from icarus.errors import ConfigError, DeadlineError, UnavailableError
from icarus.rpc.listen import hold_port


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    model = ModelSection(path=str(tiny.tiny_llama(tmp_path_factory.mktemp("model"))), name="tiny", dtype="float32")
    return Config(model=model, engine=EngineSection(num_threads=1), gateway=GatewaySection(address="127.0.0.1:0"))


def gateway_only(config, **options) -> LocalCluster:
    return LocalCluster(config, decode_adapters=[], num_prefill=0, **options)


def alive(pid: int) -> bool:
    """Zombies count as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_is_ready_when_entered_and_gone_when_left(config, tmp_path):
    progress: list[str] = []
    with gateway_only(config, log_dir=tmp_path, progress=progress.append) as cluster:
        (child,) = cluster._children
        with Client(cluster.address, timeout=10) as client:
            assert client.cluster().workers == ()
        cluster.check()
    assert progress == ["starting gateway", "gateway is ready"]
    assert not alive(child.process.pid) and child.process.returncode == 0
    assert "msg=serving" in (tmp_path / "gateway.log").read_text()


def test_its_own_processes_are_never_asked_through_a_proxy(config, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("icarus.client.connection._LOCAL", re.compile("no address"))  # as an address of a network card
    gateway = GatewaySection(address="0.0.0.0:0")
    with LocalCluster(replace(config, gateway=gateway), num_prefill=0, startup_seconds=60):
        pass


def test_metrics_are_where_it_says(config):
    progress: list[str] = []
    config = replace(config, metrics=MetricsSection("127.0.0.1:0"))
    with gateway_only(config, progress=progress.append) as cluster:
        url = f"http://{cluster.metrics['gateway']}/metrics"
        assert f"gateway is ready; metrics at {url}" in progress
        with urlopen(url, timeout=10) as answer:
            assert b"\nicarus_workers" in answer.read()


def test_workers_metrics_are_at_the_ports_that_follow():
    names = ["gateway", "decode-0"]
    addresses = _metrics_addresses("0.0.0.0:9400", names, lambda address, setting: address)
    assert addresses == {"gateway": "0.0.0.0:9400", "decode-0": "0.0.0.0:9401"}
    addresses = _metrics_addresses("0.0.0.0:0", names, lambda address, setting: address)
    assert addresses == dict.fromkeys(names, "0.0.0.0:0")


def test_nobody_else_is_given_a_port_of_its_children(config):
    """Not before they listen either, which is seconds after the port was found free."""
    cluster = gateway_only(replace(config, metrics=MetricsSection("127.0.0.1:0")))
    try:
        for address in (cluster.address, cluster.metrics["gateway"]):
            host, port = address.split(":")
            with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
                other.bind((host, int(port)))
    finally:
        cluster.stop()


def test_a_port_of_metrics_that_is_taken_is_named(config):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "{}:{}".format(*taken.getsockname())
        config = replace(config, metrics=MetricsSection(address))
        with pytest.raises(ConfigError, match=rf"^\[metrics\] address: cannot listen on {address}: Address already in"):
            gateway_only(config)


def test_a_folder_of_its_own_for_logs_is_removed(config):
    with gateway_only(config) as cluster:
        assert (cluster.log_dir / "gateway.log").exists()
    assert not cluster.log_dir.exists()


def test_a_taken_port_is_a_setting_to_change(config):
    """Before a child is started: whoever listens there would be asked whether it serves, and say yes."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"^\[gateway\] address: cannot listen on {address}"):
            gateway_only(replace(config, gateway=GatewaySection(address=address)))


@pytest.mark.parametrize("address", ["192.0.2.1:0", "nowhere.invalid:0", "a..b:0", "localhost", "127.0.0.1:x"])
@pytest.mark.parametrize("setting", ["gateway.address", "gateway.worker_address", "metrics.address"])
def test_what_cannot_be_listened_on_is_a_setting_to_change(config, setting, address):
    section, _, name = setting.partition(".")
    config = replace(config, **{section: replace(getattr(config, section), **{name: address})})
    with pytest.raises(ConfigError, match=rf"^\[{section}\] {name}: cannot listen on {re.escape(address)}: "):
        gateway_only(config)


def test_ipv6_is_in_brackets(config):
    try:
        hold_port("[::1]:0", "a test").close()
    except ConfigError:
        pytest.skip("this machine has no [::1]")
    gateway = GatewaySection(address="[::1]:0", worker_address="[::1]:0")
    config = replace(config, gateway=gateway, metrics=MetricsSection("[::1]:0"))
    with gateway_only(config) as cluster, urlopen(f"http://{cluster.metrics['gateway']}/metrics", timeout=10) as answer:
        assert cluster.address.startswith("[::1]:") and answer.status == 200


def test_a_worker_that_finds_its_settings_wrong_is_named(config):
    cluster = LocalCluster(config, decode_adapters=[["planner=/nowhere/planner"]], num_prefill=0)
    with pytest.raises(ConfigError, match=r"decode-0: .*/nowhere/planner"), cluster:
        pass


def test_a_config_of_a_single_worker_does_for_several(config, tmp_path):
    """As deploy/compose/icarus.toml is one: what it says of the worker's place holds for none of them. They register
    where the gateway listens for them."""
    gateway = replace(config.gateway, worker_address="127.0.0.1:0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        worker = WorkerSection(address="{}:{}".format(*taken.getsockname()), advertise="decode:7081")
        config = replace(config, worker=worker, gateway=gateway)
        cluster = LocalCluster(config, num_prefill=0, startup_seconds=60, log_dir=tmp_path)
        with cluster, Client(cluster.address, timeout=10) as client:
            (decode,) = client.cluster().workers
    assert decode.worker_id == "decode-0" and decode.address.startswith("127.0.0.1:")
    assert f"msg=registered gateway={cluster._worker_address}\n" in (tmp_path / "decode-0.log").read_text()


def test_settings_that_hold_for_none_of_its_processes_are_named(config):
    assert unheeded(config) == []
    worker = WorkerSection(address="0.0.0.0:7081", advertise="decode:7081", drain_seconds=9)
    gateway = replace(config.gateway, drain_seconds=60, worker_address="127.0.0.1:0")
    assert unheeded(replace(config, worker=worker, gateway=gateway)) == [
        "[worker] address is not heeded: each worker here gets its own",
        "[worker] advertise is not heeded: each worker here gets its own",
        "[gateway] drain_seconds is 60; here it is 10 at most",
    ]


def test_a_child_that_dies_is_named_with_its_last_words(config):
    with gateway_only(config) as cluster:
        cluster._children[0].process.kill()
        cluster._children[0].process.wait()
        with pytest.raises(UnavailableError, match=r"gateway ended with exit code -9(.|\n)*serving"):
            cluster.watch()


def test_a_start_has_a_limit_and_leaves_nothing(config):
    cluster = gateway_only(config, startup_seconds=0.0)
    children = cluster._children
    seen = []
    cluster._progress = lambda line: seen.extend(child.process for child in children)
    with pytest.raises(DeadlineError, match="gateway not ready after 0 s"), cluster:
        pass
    assert seen and all(process.returncode is not None for process in seen)


PARENT = """
import sys, time
from dataclasses import replace
from icarus.cli.local import LocalCluster
from icarus.config import Config, GatewaySection, ModelSection
config = Config(model=ModelSection(path=sys.argv[1], name="tiny"), gateway=GatewaySection(address="127.0.0.1:0"))
with LocalCluster(config, decode_adapters=[], num_prefill=0, log_dir=sys.argv[2]) as cluster:
    sys.stdout.write(f"{cluster._children[0].process.pid}\\n")
    sys.stdout.flush()
    time.sleep(60)
"""


def test_children_die_with_a_parent_that_is_killed(config, tmp_path):
    command = [sys.executable, "-c", PARENT, config.model.path, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), 20)


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_up_serves_until_it_is_stopped(config, tmp_path, stop, code):
    command = [sys.executable, "-m", "icarus.cli.main", "up", "--num-prefill=0", f"--model-path={config.model.path}"]
    command += ["--model-name=tiny", "--gateway-address=127.0.0.1:0", "--engine-num-threads=1"]
    command += ["--model-dtype=float32", f"--log-dir={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None and up.stderr is not None
        line = next(line for line in up.stdout if line.startswith("the gateway answers at "))
        address = line.split()[4].rstrip(";")
        ask = [sys.executable, "-m", "icarus.cli.main", "generate", "--gateway", address, "--max-tokens=4"]
        answer = subprocess.run(
            [*ask, "--ignore-eos", "hello"], capture_output=True, text=True, timeout=60, check=False
        )
        up.send_signal(stop)
        assert up.wait(30) == code and up.stderr.read() == ""
    assert answer.returncode == 0 and "length: 5 prompt tokens" in answer.stderr and "by decode-0" in answer.stderr
    assert "draining" in (tmp_path / "decode-0.log").read_text()
