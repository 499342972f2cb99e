"""Every decision of docs/placement.md. Weights: a request 100, an adapter to read 300, the detour 256 tokens."""

import pytest
from icarus_gateway.cluster.placement import Candidate, Placement, Weights, cheapest, place, rank_sources
from icarus_gateway.cluster.routing import Router
from icarus_gateway.cluster.worker import Heartbeat, WorkerInfo
from icarus_gateway.cluster.workers import WorkerTable
from index_reports import apply

from icarus.cache.changes import BlockChange
from icarus.cache.hashing import block_hashes, root_hash
from icarus.cache.index import PrefixIndex
from icarus.errors import NotFoundError, UnavailableError
from icarus.rpc.messages import PROTOCOL_VERSION
from icarus.types import AdapterInfo, AdapterMode, Role, WorkerId

WEIGHTS = Weights(load_penalty_tokens=100, adapter_penalty_tokens=300, prefill_threshold_tokens=256)
ROOM = 10_000
COLD, FULL = {"resident": False}, {"available_tokens": 0}


def ids(counts: dict[str, int]) -> dict[WorkerId, int]:
    return {WorkerId(name): count for name, count in counts.items()}


def worker(name: str, load: int = 0, **facts) -> Candidate:
    return Candidate(WorkerId(name), load, **{"available_tokens": ROOM, **facts})


@pytest.mark.parametrize(
    ("case", "cached", "workers", "expected"),
    [
        ("all alike: by name", {}, [worker("d1"), worker("d2")], "d1"),
        ("warm", {"d2": 16}, [worker("d1"), worker("d2")], "d2"),
        ("warmer", {"d1": 100, "d2": 128}, [worker("d1"), worker("d2")], "d2"),
        ("warm elsewhere tells nothing", {"p1": 4096}, [worker("d1", 1), worker("d2")], "d2"),
        ("idle", {}, [worker("d1", 1), worker("d2")], "d2"),
        ("a request outweighs a little cache", {"d2": 99}, [worker("d1"), worker("d2", 1)], "d1"),
        ("much cache outweighs a request", {"d2": 101}, [worker("d1"), worker("d2", 1)], "d2"),
        ("even: less load", {"d2": 100}, [worker("d1"), worker("d2", 1)], "d1"),
        ("resident", {}, [worker("d1", **COLD), worker("d2")], "d2"),
        ("reading an adapter outweighs a little cache", {"d1": 299}, [worker("d1", **COLD), worker("d2")], "d2"),
        ("much cache outweighs reading an adapter", {"d1": 301}, [worker("d1", **COLD), worker("d2")], "d1"),
        ("resident but busy", {}, [worker("d1", 4), worker("d2", **COLD)], "d2"),
        ("resident and less busy than that", {}, [worker("d1", 2), worker("d2", **COLD)], "d1"),
        ("a full pool comes last", {}, [worker("d1", **FULL), worker("d2", 9, **COLD)], "d2"),
        ("cached blocks need no room", {"d1": 900}, [worker("d1", available_tokens=100), worker("d2")], "d1"),
        ("all full: by cost", {"d2": 16}, [worker("d1", **FULL), worker("d2", **FULL)], "d2"),
        ("all alike: more room", {}, [worker("d1", available_tokens=2000), worker("d2")], "d2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_where_to_decode(case, cached, workers, expected):
    assert cheapest(workers, 1000, ids(cached), WEIGHTS).worker_id == expected


@pytest.mark.parametrize(
    ("case", "num_prompt", "cached", "decode_load", "prefillers", "expected"),
    [
        ("a short prompt", 255, {}, 0, [worker("p1")], None),
        ("a long one", 256, {}, 0, [worker("p1")], "p1"),
        ("no prefill worker", 256, {}, 0, [], None),
        ("long, its rest short: cached here", 1000, {"d1": 752}, 0, [worker("p1")], None),
        ("long, its rest short: cached anywhere", 1000, {"d2": 752}, 0, [worker("p1")], None),
        ("a block less is cached", 1000, {"d2": 736}, 0, [worker("p1")], "p1"),
        ("the warmer prefill worker", 1000, {"p2": 64}, 0, [worker("p1"), worker("p2")], "p2"),
        ("the idler one", 1000, {"p2": 64}, 0, [worker("p1"), worker("p2", 1)], "p1"),
        ("its queue costs more than it saves", 455, {}, 0, [worker("p1", 2)], None),
        ("and here it does not", 456, {}, 0, [worker("p1", 2)], "p1"),
        ("a queue no longer than the decode worker's", 256, {}, 2, [worker("p1", 2)], "p1"),
        ("a busy decode worker keeps short rests", 255, {}, 9, [worker("p1")], None),
        ("a private adapter to be read there first", 555, {}, 0, [worker("p1", **COLD)], None),
        ("and it pays", 556, {}, 0, [worker("p1", **COLD)], "p1"),
        ("a full pool", 1000, {}, 0, [worker("p1", **FULL)], None),
        ("another than the full one", 1000, {}, 0, [worker("p1", **FULL), worker("p2", 3)], "p2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whether_and_where_to_prefill(case, num_prompt, cached, decode_load, prefillers, expected):
    placement = place(num_prompt, ids(cached), [worker("d1", decode_load)], prefillers, WEIGHTS)
    assert placement == Placement(WorkerId("d1"), expected)


def test_sources():
    held = ids({"d1": 5, "d2": 9, "p1": 5, "x": 0, "a": 1, "b": 1, "c": 1})
    assert rank_sources(held, WorkerId("d2")) == ["d1", "p1", "a", "b"]
    assert rank_sources({}, WorkerId("d2")) == []


SHARED, PRIVATE = AdapterMode.SHARED, AdapterMode.PRIVATE
PROMPT = list(range(400))
BLOCK = 16


class Cluster:
    """A router over a real table and a real index; workers are only registered."""

    def __init__(self) -> None:
        self.now = 0.0
        self.table = WorkerTable("base", 1.0, 60.0, clock=lambda: self.now)
        self.index = PrefixIndex()
        self.router = Router(self.table, self.index, "base", WEIGHTS)

    def add(self, name: str, role: Role = Role.DECODE, num_blocks: int = 100, **modes: AdapterMode) -> None:
        info = WorkerInfo(WorkerId(name), f"{name}-1", role, "127.0.0.1:1", "base", "b", "f", BLOCK, num_blocks, 4096)
        self.table.register(info, PROTOCOL_VERSION, self.adapters(modes))
        self.beat(name, **modes)

    def adapters(self, modes: dict[str, AdapterMode], resident: bool = True) -> list[AdapterInfo]:
        return [AdapterInfo(name, name * 2, mode, 4, resident) for name, mode in modes.items()]

    def beat(self, name: str, resident: bool = True, available: int = 100, age: float = 0.0, **modes) -> None:
        self.table.beat(WorkerId(name), f"{name}-1", Heartbeat(age, 0, available), self.adapters(modes, resident))

    def holds(self, name: str, num_tokens: int, salt: str = "") -> None:
        hashes = block_hashes(root_hash("f", "default", salt), PROMPT[:num_tokens], BLOCK)
        changes = [BlockChange(block_hash, removed=False) for block_hash in hashes]
        apply(self.index, WorkerId(name), f"{name}-1", self.index.sequence(WorkerId(name)), changes)

    def route(
        self, model: str = "base", excluded: tuple[str, ...] = (), max_new_tokens: int = 1
    ) -> tuple[str, str | None]:
        route = self.router.route("default", PROMPT, max_new_tokens, self.router.adapter(model), excluded)
        return route.decode.worker_id, route.prefill.worker_id if route.prefill else None


@pytest.fixture
async def cluster():
    cluster = Cluster()
    for name in ("d1", "d2"):
        cluster.add(name, math=SHARED, own=PRIVATE)
    cluster.add("p1", Role.PREFILL)
    yield cluster
    await cluster.table.close()


async def test_the_table_feeds_the_rule(cluster):
    assert cluster.route() == ("d1", "p1")
    cluster.holds("d2", 256)
    assert cluster.route() == ("d2", None)
    assert cluster.route("own") == ("d1", None), "private: its own names, and the prefill worker does not have it"
    cluster.holds("d2", 160, salt="ownown")
    assert cluster.route("own") == ("d2", None)
    assert cluster.route("math") == ("d2", None), "shared: the base's names"


async def test_a_private_adapter_is_prefilled_where_it_is_loaded(cluster):
    assert cluster.route("own") == ("d1", None)
    cluster.beat("p1", own=PRIVATE)
    assert cluster.route("own") == ("d1", "p1")
    cluster.beat("p1", resident=False, own=PRIVATE)
    assert cluster.route("own") == ("d1", None), "400 tokens are not worth reading its weights first"


async def test_residency_and_room_come_by_heartbeat(cluster):
    cluster.beat("d1", resident=False, math=SHARED, own=PRIVATE)
    assert cluster.route("math") == ("d2", "p1")
    assert cluster.route("base") == ("d1", "p1"), "the base has nothing to read"
    cluster.beat("d1", available=0, math=SHARED, own=PRIVATE)
    assert cluster.route("base") == ("d2", "p1")
    cluster.beat("p1", available=0)
    assert cluster.route("base") == ("d2", None)


async def test_turns_assigned_since_the_last_heartbeat_count(cluster):
    with cluster.table.assigned(cluster.table.live()[0]):
        assert cluster.route() == ("d2", "p1")
    assert cluster.route() == ("d1", "p1")


async def test_who_is_left_out(cluster):
    assert cluster.route(excluded=("d1-1", "p1-1")) == ("d2", None), "they failed this turn"
    d1, _, p1 = cluster.table.live()
    d1.failed = p1.failed = True
    assert cluster.route() == ("d2", None), "a call did not reach them"
    for name in ("d1", "p1"):
        cluster.beat(name, math=SHARED, own=PRIVATE)
    assert cluster.route() == ("d1", "p1")
    cluster.beat("d1", age=61.0)
    assert cluster.route() == ("d2", "p1"), "its engine hangs"
    cluster.now = 3.1
    cluster.beat("d2", math=SHARED)
    cluster.holds("p1", 384)
    assert cluster.route() == ("d2", None), "the others drain or died: they were not heard of"
    assert cluster.router.route("default", PROMPT, 1, None).decode_sources == ()
    with pytest.raises(UnavailableError, match="'base'"):
        cluster.route(excluded=("d2-1",))


async def test_blocks_of_a_worker_that_is_gone_count_for_nothing(cluster):
    cluster.holds("p1", 384)
    assert cluster.route() == ("d1", None)
    cluster.table.live()[2].failed = True
    cluster.add("p2", Role.PREFILL)
    assert cluster.route() == ("d1", "p2")


async def test_decoders_that_are_too_small_for_the_turn_are_left_out(cluster):
    cluster.add("d0", num_blocks=50, math=SHARED)
    for name in ("d1", "d2"):
        cluster.beat(name, available=0, math=SHARED, own=PRIVATE)
    assert cluster.route(max_new_tokens=401)[0] == "d0", "the last token generated needs no room"
    assert cluster.route(max_new_tokens=402)[0] == "d1", "full, but not for ever"
    assert cluster.route(max_new_tokens=10_000)[0] == "d0", "too much for all of them: it will say so"
    with pytest.raises(UnavailableError, match="try again"):
        cluster.route(max_new_tokens=402, excluded=("d1-1", "d2-1"))
    cluster.now = 3.1
    cluster.beat("d0", math=SHARED)
    with pytest.raises(UnavailableError, match="try again"):
        cluster.route(max_new_tokens=402)
    assert cluster.route(max_new_tokens=401) == ("d0", None)


async def test_an_adapter_whose_holders_cannot_be_reached_is_not_unknown(cluster):
    cluster.add("d0")
    cluster.now = 3.1
    cluster.beat("d0")
    with pytest.raises(UnavailableError, match="'math' can be reached now; try again"):
        cluster.route("math")
    with pytest.raises(NotFoundError, match="'physics' is not here"):
        cluster.route("physics")
    for name in ("d1", "d2"):
        cluster.table.deregister(WorkerId(name), f"{name}-1")
    with pytest.raises(NotFoundError, match="'math' is not here"):
        cluster.route("math")
