"""What a cluster meets in a day, in seconds: conversations over many specialists, a full pool, callers that leave,
workers that die. Everything that a panel shows happens at least once, and long enough to be scraped."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from observability.prometheus_server import PrometheusServer
from services.system import System
from services.test_cancellation import hold
from services.test_chain import ids
from services.test_faults import lose_its_worker

from icarus.client import Client
from icarus.errors import NotFoundError
from icarus.types import AdapterMode

NUM_BLOCKS = 64
"""Small enough that conversations push each other out."""
MODELS = ("s0", "s1", "both", "own", "tiny", "s2", "s3")
LONG, SHORT = 120, 40
"""Prompts that go to the prefill worker, and that the decode worker computes itself."""


def drive(system: System, server: PrometheusServer) -> None:
    with Client(system.address) as client:
        server.wait_for("sum(up) == 4")
        client.load_adapter("own", str(system.specialists.folder("own")), mode=AdapterMode.PRIVATE)
        for seed in (1000, 2000):  # a series grows for the first time after it was first scraped
            converse(client, seed)
            crowd(client, seed)
            leave_early(client, seed)
            ask_for_what_is_not_there(client)
            server.wait_for_scrape()
        wait_in_a_queue(system, client, server)
        client.unload_adapter("own")
        server.wait_for_scrape()
        lose_the_prefill_worker_during_a_read(system, client, server)
        lose_a_decode_worker_during_a_turn(system, client, server)


def converse(client: Client, seed: int) -> None:
    """A session that every specialist continues, and one that is left as it is."""
    session = client.create_session(token_ids=ids(LONG, seed))
    for model in MODELS:
        session.append(token_ids=ids(9, seed + 1))
        session.generate(model, max_tokens=10, ignore_eos=True).result()
    session.fork()
    session.delete()


def crowd(client: Client, seed: int) -> None:
    """More at once than the pool of one worker holds: some give way."""

    def generate(number: int) -> None:
        client.generate("s0", token_ids=ids(SHORT, seed + number), max_tokens=160, ignore_eos=True).result()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(generate, range(4)))


def leave_early(client: Client, seed: int) -> None:
    with client.generate("s1", token_ids=ids(SHORT, seed), max_tokens=400, ignore_eos=True) as stream:
        next(stream)


def ask_for_what_is_not_there(client: Client) -> None:
    with pytest.raises(NotFoundError):
        client.generate("nobody", token_ids=[5, 6, 7]).result()


def wait_in_a_queue(system: System, client: Client, server: PrometheusServer) -> None:
    with hold(system, "decode-0", "queued") as held:
        stream = client.generate("s0", token_ids=ids(SHORT, 50), max_tokens=4)
        held.wait_reached()
        server.wait_for("icarus_requests_waiting > 0")
    stream.result()


def lose_the_prefill_worker_during_a_read(system: System, client: Client, server: PrometheusServer) -> None:
    """The turn goes on, but its read fails."""
    with hold(system, "decode-0", "transferring") as held:
        stream = client.generate("s0", token_ids=ids(LONG, 60), max_tokens=4)
        held.wait_reached()
        server.wait_for("icarus_leased_blocks > 0")
        server.wait_for("icarus_turns_running > 0")
        system.signal("prefill-0", signal.SIGKILL)
    stream.result()
    server.wait_for('icarus_transfer_failures_total{cause!="gone"} > 0')
    server.wait_for_scrape()


def lose_a_decode_worker_during_a_turn(system: System, client: Client, server: PrometheusServer) -> None:
    """The turn goes on elsewhere."""
    stream, _, _ = lose_its_worker(
        system, lambda: client.generate("both", token_ids=ids(SHORT, 70), max_tokens=300, ignore_eos=True)
    )
    stream.result()
    server.wait_for("count(up == 0) == 2")
    server.wait_for('sum(icarus_workers{state="left_out"}) == 2')
    server.wait_for_scrape()
