"""One turn, followed through every process that had a part in it: a real collector, real processes."""

import json
import signal
import subprocess
import sys
import time

import pytest
from services.otlp_receiver import OtlpReceiver
from services.test_chain import ids

from icarus.client import Client

CALLER = """
import json, sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from icarus.client import Client

provider = TracerProvider(resource=Resource.create({"service.name": "agents"}))
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
address, prompt = sys.argv[1], json.loads(sys.argv[2])
with Client(address) as client:
    session = client.create_session(token_ids=prompt)
    traces = []
    for model in ("s0", "s1"):
        with trace.get_tracer("agents").start_as_current_span("step") as step:
            turn = session.generate(model, max_tokens=20, ignore_eos=True)
            turn.result()
            traces.append([f"{step.get_span_context().trace_id:032x}", turn.turn_id])
    print(json.dumps([session.session_id, *traces]))
"""


@pytest.fixture(scope="module")
def receiver():
    with OtlpReceiver() as receiver, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield receiver


def parents(spans) -> dict[tuple[str, str], tuple[str, str] | None]:
    """Who is whose parent, by (process, name)."""
    names = {span.span_id: key for key, span in spans.items()}
    return {key: names.get(span.parent_span_id) for key, span in spans.items()}


def attributes(span) -> dict[str, object]:
    values = {item.key.removeprefix("icarus."): item.value for item in span.attributes}
    return {name: getattr(value, value.WhichOneof("value")) for name, value in values.items()}


def test_a_turn_is_one_trace_through_all_processes(make_system, receiver):
    with make_system(heartbeat_seconds=5.0) as system:
        prompt = json.dumps(ids(100, 70_000))
        command = [sys.executable, "-c", CALLER, system.address, prompt]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        session_id, first, second = json.loads(done.stdout)
        follow_a_prefilled_turn(receiver, *first, session_id)
        follow_a_turn_that_reads_from_its_neighbour(receiver, *second, session_id)
        look_at_the_logs(system, session_id, *second)
        see_a_dead_source_in_the_log(system)


AGENT, CLIENT = ("agents", "step"), ("agents", "icarus.generate")
TURN = ("icarus-gateway", "icarus.turn")


def follow_a_prefilled_turn(receiver, trace_id, turn_id, session_id):
    expected = {
        AGENT: None,
        CLIENT: AGENT,
        TURN: CLIENT,
        ("prefill-0", "icarus.prefill"): TURN,
        ("decode-0", "icarus.decode"): TURN,
        ("decode-0", "icarus.fetch"): ("decode-0", "icarus.decode"),
        ("decode-0", "icarus.transfer"): ("decode-0", "icarus.fetch"),
    }
    spans = receiver.wait_for(bytes.fromhex(trace_id), set(expected))
    assert parents(spans) == expected
    turn = attributes(spans[TURN])
    assert (turn["turn_id"], turn["session_id"], turn["model"]) == (turn_id, session_id, "s0")
    assert (turn["computed_tokens"], turn["remote_tokens"], turn["completion_tokens"]) == (100, 0, 20)
    assert (turn["redispatches"], turn["outcome"]) == (0, "length")
    for key in (("prefill-0", "icarus.prefill"), ("decode-0", "icarus.decode")):
        assert attributes(spans[key]) == {"turn_id": turn_id, "session_id": session_id, "adapter": "s0"}
    for key in (CLIENT, TURN, ("decode-0", "icarus.decode")):
        assert [event.name for event in spans[key].events] == ["first_token"]
        assert spans[key].start_time_unix_nano < spans[key].events[0].time_unix_nano < spans[key].end_time_unix_nano


def follow_a_turn_that_reads_from_its_neighbour(receiver, trace_id, turn_id, session_id):
    expected = {
        AGENT: None,
        CLIENT: AGENT,
        TURN: CLIENT,
        ("decode-1", "icarus.decode"): TURN,
        ("decode-1", "icarus.fetch"): ("decode-1", "icarus.decode"),
        ("decode-0", "icarus.lease"): ("decode-1", "icarus.fetch"),
        ("decode-1", "icarus.transfer"): ("decode-1", "icarus.fetch"),
    }
    spans = receiver.wait_for(bytes.fromhex(trace_id), set(expected))
    assert parents(spans) == expected
    assert attributes(spans[TURN])["remote_tokens"] > 100
    assert (
        attributes(spans["decode-0", "icarus.lease"])["blocks"]
        == attributes(spans["decode-1", "icarus.transfer"])["blocks"]
    )


def look_at_the_logs(system, session_id, trace_id, turn_id):
    line = next(line for line in system.log("gateway").splitlines() if f"turn={turn_id}" in line)
    assert 'msg="turn ended"' in line and f"session={session_id} trace={trace_id}" in line


def see_a_dead_source_in_the_log(system):
    """What a worker logs during a turn carries the turn's names too."""
    with Client(system.address) as client:
        session = client.create_session(token_ids=ids(57, 70_001))
        for _ in range(2):  # the second turn, which completes no block, waits until the gateway knows the first one's
            session.generate("s0", max_tokens=2, ignore_eos=True).result()
        system.signal("decode-0", signal.SIGKILL)
        turn = session.generate("s1", max_tokens=2)
        turn.result()
    deadline = time.monotonic() + 10
    while f"turn={turn.turn_id}" not in (log := system.log("decode-1")):
        assert time.monotonic() < deadline, log
        time.sleep(0.05)
    line = next(line for line in log.splitlines() if f"turn={turn.turn_id}" in line)
    assert "nothing read from" in line and f"session={session.session_id}" in line and " trace=" in line
