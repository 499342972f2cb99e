"""`icarus doctor` as a process; what it measures is real."""

import os
import re
import subprocess
import sys

import pytest

from icarus.cli.doctor.gateway import examine_gateway
from icarus.cli.doctor.path import transport_of
from icarus.cli.health import SERVING
from icarus.cli.main import main
from icarus.client import Cluster, LeftOutWorker
from icarus.types import Role

LINE = re.compile(r"(ok|warn|fail)\s+(\S.*?)\s{2,}(\S.*)")


def doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, tuple[str, str]]]:
    command = [sys.executable, "-m", "icarus.cli.main", "doctor", "--read-mib", "65", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=560, check=False, env={**os.environ, **environment}
    )
    assert "Traceback" not in done.stderr, done.stderr
    matches = [LINE.fullmatch(line) for line in done.stdout.splitlines()]
    assert matches and all(matches), done.stdout
    return done.returncode, {match[2]: (match[1], match[3]) for match in matches if match}


@pytest.mark.timeout(600)  # four processes that load NIXL, on a machine that others use too
def test_it_measures_the_path_and_fails_for_failures_alone(gateway, tmp_path):
    pytest.importorskip("nixl")
    code, lines = doctor("--gateway", gateway.address, XDG_CACHE_HOME=str(tmp_path), UCX_TLS="tcp")
    level, path = lines["measured path"]
    assert level == "warn" and re.search(r"66 MiB at \d+\.\d\d GB/s over tcp/", path) and "namespace" in path
    assert lines["model cache"] == ("ok", "empty: 'icarus up' or 'icarus demo' fills it")
    assert lines["icarus"][0] == lines["torch"][0] == lines["nixl"][0] == "ok"
    assert "UCX" in lines["nixl plugins"][1]
    assert lines["gateway"][0] == "fail" and "UNIMPLEMENTED" in lines["gateway"][1]  # the script has no health service
    assert code == 1


def test_without_torch_and_nixl_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("icarus.cli.doctor.machine.is_installed", lambda name: name == "grpcio")
    monkeypatch.setattr("icarus.cli.doctor.path.is_installed", lambda name: False)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "warn  torch" in out and "warn  nixl" in out and "unknown: torch" in out
    assert re.search(r"warn  measured path +not measured: nixl is not installed", out)


def test_a_gateway_that_is_not_there_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr("icarus.cli.doctor.path.is_installed", lambda name: False)
    assert main(["doctor", "--address", "127.0.0.1:1"]) == 1
    assert "fail  gateway" in capsys.readouterr().out


def test_it_asks_the_gateway_as_any_other_client(gateway, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("icarus.cli.doctor.path.is_installed", lambda name: False)
    monkeypatch.setattr("icarus.cli.doctor.gateway.ask_health", lambda target: asked.append(target) or SERVING)
    assert main(["doctor", "--gateway", gateway.address, "--header", "X-Team=a", "--timeout", "7"]) == 0
    (target,) = asked
    assert (target.metadata, target.timeout, target.credentials) == ((("x-team", "a"),), 7.0, None)
    assert [metadata["x-team"] for _, metadata in gateway.calls] == ["a"] * 2
    assert main(["doctor", "--gateway", gateway.address, "--tls"]) == 1
    assert asked[1].credentials is not None and asked[1].timeout == 10.0
    capsys.readouterr()
    assert main(["doctor", "--tls"]) == 2
    assert "give --gateway" in capsys.readouterr().err


def test_a_worker_that_is_left_out_is_a_warning(gateway, monkeypatch):
    monkeypatch.setattr("icarus.cli.doctor.gateway.ask_health", lambda target: SERVING)
    findings = {finding.name: finding for finding in examine_gateway(gateway.address)}
    lost = findings["worker prefill-0"]
    assert lost.level == "warn" and lost.value == "prefill at b:1 gets no turns: last heard of 4 s ago"
    ends = findings["worker decode-1"]
    assert ends.value == "decode at c:1 drains: it ends its turns and gets no more" and "start it" not in ends.advice
    assert findings["worker decode-0"].level == "ok" and findings["workers"].value.startswith("1 decode, 0 prefill")


def test_a_worker_that_reports_and_gets_no_turns_is_out_of_reach(gateway, monkeypatch):
    told = Cluster((), 16, (LeftOutWorker("decode-0", Role.DECODE, "127.0.0.1:9", 0.4),))
    monkeypatch.setattr("icarus.cli.doctor.gateway.ask_health", lambda target: SERVING)
    monkeypatch.setattr("icarus.client.Client.cluster", lambda client: told)
    findings = {finding.name: finding for finding in examine_gateway(gateway.address)}
    assert "cannot reach 127.0.0.1:9 (see [worker] advertise), or" in findings["worker decode-0"].advice


def test_the_model_cache_is_listed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("icarus.cli.doctor.path.is_installed", lambda name: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = tmp_path / "icarus" / "models" / "0123-v1" / "Tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}" * 1024)
    assert main(["doctor"]) == 0
    assert "Tiny (2 KiB)" in capsys.readouterr().out


def table(title: str, *rows: str) -> str:
    return "\n".join(
        f"[1.0] [vm:1 :0]   | {line} |" for line in (*title.split("\n"), "Range | Description | Config", *rows)
    )


READ = "remote memory read by ucp_get*(multi) into host memory from host"


def test_the_transport_is_read_out_of_ucx_own_report():
    itself = table(f"x self cfg#0\n{READ}", "0..inf | zero-copy | cma/memory")
    write = table("x intra-node cfg#1\nremote memory write by ucp_put*", "0..inf | zero-copy | sysv/memory")
    read = table(f"x intra-node cfg#1\n{READ}", "0..99 | short | tcp/lo", "100..inf | zero-copy | rc_mlx5/mlx5_0:1")
    emulated = table(f"x inter-node cfg#1\n{READ}", "0..inf | software emulation | tcp/eth0")
    assert transport_of("\n".join([itself, write, read])) == "rc_mlx5/mlx5_0:1"
    assert transport_of("\n".join([itself, emulated, write])) == "tcp/eth0 (emulated by messages)"
    assert transport_of("\n".join([itself, write])) is None
