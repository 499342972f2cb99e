"""The adapters of a worker, by name."""

import threading

import pytest

from icarus.adapters.lora import LoraWeights
from icarus.adapters.registry import AdapterRegistry
from icarus.errors import AlreadyExistsError, NotFoundError
from icarus.types import AdapterMode


def weights(name: str, digest: str = "d", mode: AdapterMode = AdapterMode.SHARED) -> LoraWeights:
    return LoraWeights(name, digest, mode, rank=1, modules={})


def test_add_get_remove_and_list():
    registry = AdapterRegistry()
    writer, critic = registry.add(weights("writer")), registry.add(weights("critic"))
    assert registry.get("writer") is writer and registry.list() == (critic, writer)
    assert registry.remove("writer") is writer and registry.list() == (critic,)
    for call in (registry.get, registry.remove):
        with pytest.raises(NotFoundError, match=r"'writer' is not loaded here; loaded are critic"):
            call("writer")


def test_loading_the_same_weights_again_keeps_the_first():
    registry = AdapterRegistry()
    first = registry.add(weights("writer"))
    assert registry.add(weights("writer")) is first


@pytest.mark.parametrize("other", [weights("writer", "e"), weights("writer", mode=AdapterMode.PRIVATE)])
def test_a_name_taken_by_other_weights_or_mode_is_refused_and_kept(other):
    registry = AdapterRegistry()
    first = registry.add(weights("writer"))
    with pytest.raises(AlreadyExistsError, match=r"'writer' is loaded already.*unload it first"):
        registry.add(other)
    assert registry.get("writer") is first


def test_threads_that_add_one_name_agree_on_one_winner():
    registry, start, winners = AdapterRegistry(), threading.Barrier(8), []

    def add() -> None:
        start.wait()
        winners.append(registry.add(weights("writer")))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 8 and len(set(map(id, winners))) == 1
