"""/metrics of real services, against docs/metrics.md and against what clients saw."""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.request import Request, urlopen

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from services.system import BLOCK_SIZE, System
from services.test_cancellation import decoding_held
from services.test_chain import CHAIN, ids, play
from waiting import wait_until

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(icarus_\w+)` \| (counter|gauge|histogram) \| ([^|]*)\|", re.MULTILINE)
NUM_BLOCKS = 512


class Scrape:
    """One answer of each process, in the form that Prometheus asks for."""

    def __init__(self, system: System):
        self.families = {name: scrape(address) for name, address in system.metrics.items()}

    def of(self, process: str, name: str, **labels: str) -> float:
        """The sum over every series of a process that has these labels."""
        samples = (sample for family in self.families[process] for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def of_workers(self, name: str, **labels: str) -> float:
        return sum(self.of(process, name, **labels) for process in self.families if process != "gateway")


def scrape(address: str) -> list[Metric]:
    request = Request(f"http://{address}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urlopen(request, timeout=20) as answer:
        return list(text_string_to_metric_families(answer.read().decode()))


def documented(*sections: str) -> set[tuple[str, str, tuple[str, ...]]]:
    """(name, type, labels) of each row of the sections that begin so."""
    parts = DOCUMENT.read_text().split("\n## ")[1:]
    assert len(parts) == 3, "the gateway, workers, every service"
    rows = [row for part in parts if part.startswith(sections) for row in ROW.findall(part)]
    return {(name, kind, tuple(sorted(re.findall(r"`(\w+)`", labels)))) for name, kind, labels in rows}


def exposed(families: Iterable[Metric]) -> set[tuple[str, str, tuple[str, ...]]]:
    """A family that has no series yet has no labels, and so differs from the document."""
    found = set()
    for family in families:
        if not family.name.startswith("process_"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found.add((name, family.type, tuple(sorted(labels))))
    return found


def test_the_document_says_what_services_expose(system, client):
    play(client, CHAIN[:2], seed=50_000)
    found = Scrape(system).families
    assert exposed(found["gateway"]) == documented("The gateway", "Every service")
    for name in ("prefill-0", "decode-0", "decode-1"):
        assert exposed(found[name]) == documented("Workers", "Every service"), name


def test_figures_are_what_clients_saw(system, client):
    before = Scrape(system)
    results, _ = play(client, CHAIN, seed=60_000)
    results.append(client.generate("tiny", token_ids=ids(20, 60_100), max_tokens=4, ignore_eos=True).result())
    system.wait_until_idle()
    after = Scrape(system)
    models = [*CHAIN, "tiny"]

    def gateway(name: str, **labels: str) -> float:
        return after.of("gateway", name, **labels) - before.of("gateway", name, **labels)

    def workers(name: str, **labels: str) -> float:
        return after.of_workers(name, **labels) - before.of_workers(name, **labels)

    def total(field: str, of: Iterable[str] = models) -> int:
        return sum(getattr(r.usage, field) for m, r in zip(models, results, strict=True) if m in of)

    for model in set(models):
        of = [model]
        for source in ("computed", "local", "remote"):
            assert gateway("icarus_prompt_tokens_total", model=model, source=source) == total(f"{source}_tokens", of)
        assert gateway("icarus_prompt_tokens_total", model=model) == total("prompt_tokens", of)
        assert gateway("icarus_completion_tokens_total", model=model) == total("completion_tokens", of)
        assert gateway("icarus_encoder_tokens_avoided_total", model=model) == total("cached_tokens", of)
        assert gateway("icarus_cross_adapter_tokens_total", read_under=model) == total("cross_adapter_tokens", of)
        assert gateway("icarus_cross_adapter_tokens_total", read_under=model, written_under=model) == 0
        assert gateway("icarus_turns_total", model=model, outcome="length") == models.count(model)
        assert workers("icarus_kv_tokens_written_total", model=model) == total("kv_written_tokens", of)
    assert gateway("icarus_cross_adapter_tokens_total", read_under="s1", written_under="s0") > 100
    assert gateway("icarus_turns_total") == gateway("icarus_turns_placed_total") == len(models)
    assert gateway("icarus_turn_seconds_count") == gateway("icarus_turn_queue_seconds_count") == len(models)
    assert gateway("icarus_time_to_first_token_seconds_count") == len(models)
    assert gateway("icarus_inter_token_latency_seconds_count") == total("completion_tokens") - len(models)
    assert after.of("gateway", "icarus_turns_running") == 0
    assert gateway("icarus_session_events_total", event="created") == 1
    assert workers("icarus_transfer_bytes_total") == total("transfer_bytes") > 0
    assert workers("icarus_transfer_seconds_count") == total("transfer_reads") > 0
    assert workers("icarus_leases_total", event="granted") == workers("icarus_leases_total", event="released")
    check_workers(after)
    assert workers("icarus_step_rows_total", kind="paired") == total("completion_tokens", CHAIN)
    assert workers("icarus_step_rows_total", kind="single") == 4
    rows = sum(workers("icarus_step_rows_total", kind=kind) for kind in ("encoder", "paired", "single"))
    assert rows == workers("icarus_kv_tokens_written_total") == total("kv_written_tokens")


def check_workers(after: Scrape) -> None:
    for name in ("prefill-0", "decode-0", "decode-1"):
        assert after.of(name, "icarus_kv_blocks") == NUM_BLOCKS
        assert after.of(name, "icarus_kv_blocks", state="used") == 0
        assert after.of(name, "icarus_kv_block_tokens") == BLOCK_SIZE
        steps = after.of(name, "icarus_step_seconds_count")
        assert steps == after.of(name, "icarus_batch_size_count") > 0
        assert after.of(name, "icarus_worker_info", worker=name, role=name[:-2]) == 1
        # One step took no longer than all of them: the encoder's share is a share.
        assert 0 < after.of(name, "icarus_encoder_seconds_total") <= after.of(name, "icarus_step_seconds_sum")


def test_a_cancelled_turn_counts_what_it_used(system, client):
    before = Scrape(system)
    with decoding_held(system):
        stream = client.generate("s2", token_ids=ids(40, 61_000), max_tokens=900, ignore_eos=True)
        next(stream)
        stream.cancel()
        wait_until(lambda: not Scrape(system).of("gateway", "icarus_turns_running"))
    after = Scrape(system)

    def gateway(name: str, **labels: str) -> float:
        return after.of("gateway", name, **labels) - before.of("gateway", name, **labels)

    assert gateway("icarus_turns_total", model="s2", outcome="cancelled") == gateway("icarus_turns_total") == 1
    assert gateway("icarus_prompt_tokens_total") == 40
    assert 1 <= gateway("icarus_completion_tokens_total", model="s2") < 900
