"""The adapters of a worker: what a name stands for, and who has a slot."""

import gc
from pathlib import Path

import pytest

from icarus.adapters.lora import LoraWeights
from icarus.adapters.registry import AdapterRegistry
from icarus.errors import AlreadyExistsError, NotFoundError, OverloadedError
from icarus.types import AdapterInfo, AdapterMode

FOLDER = Path("/adapters")


def weights(name: str, digest: str = "d", mode: AdapterMode = AdapterMode.SHARED) -> LoraWeights:
    return LoraWeights(name, digest, mode, rank=1, num_layers=1, modules={})


def filled(max_resident: int, *names: str, pinned: str = "") -> AdapterRegistry:
    """Adapters added in order; those in `pinned` (letters) are pinned. Nobody else holds their weights."""
    registry = AdapterRegistry(max_resident)
    for name in names:
        registry.add(weights(name), FOLDER / name, pin=name in pinned)
    gc.collect()
    return registry


def resident(registry: AdapterRegistry) -> str:
    return "".join(info.name for info in registry.list() if info.resident)


def test_add_use_remove_and_list():
    registry, writer = AdapterRegistry(), weights("writer")
    assert registry.add(writer, FOLDER) == AdapterInfo("writer", "d", AdapterMode.SHARED, 1)
    registry.add(weights("critic"), FOLDER / "critic")
    assert registry.use("writer") is writer and registry.folder("critic") == FOLDER / "critic"
    assert [info.name for info in registry.list()] == ["critic", "writer"]
    registry.remove("writer")
    for call in (registry.use, registry.remove, registry.info, registry.folder):
        with pytest.raises(NotFoundError, match=r"'writer' is not loaded here; loaded are critic"):
            call("writer")
    with pytest.raises(NotFoundError):
        registry.set_pinned("writer", True)


def test_the_revision_tells_every_change_that_the_list_shows():
    registry, revisions = AdapterRegistry(1), [0]
    for change in (
        lambda: registry.add(weights("writer"), FOLDER),
        lambda: registry.add(weights("critic"), FOLDER),  # the writer's weights give way
        lambda: registry.set_pinned("critic", True),
        lambda: registry.remove("critic"),
        lambda: registry.restore(weights("writer")),
    ):
        change()
        revisions.append(registry.revision)
    assert revisions == sorted(set(revisions)), "each one is above the one before it"


def test_loading_the_same_weights_again_keeps_the_first_and_notes_the_folder():
    registry, first = AdapterRegistry(), weights("writer")
    registry.add(first, FOLDER / "old")
    registry.add(weights("writer"), FOLDER / "new")
    assert registry.use("writer") is first and registry.folder("writer") == FOLDER / "new"
    assert registry.counts.loaded == 1


OTHERS = [weights("writer", "e"), weights("writer", mode=AdapterMode.PRIVATE)]


@pytest.mark.parametrize("other", OTHERS)
def test_a_name_taken_by_other_weights_or_mode_is_refused_and_kept(other):
    registry, first = AdapterRegistry(), weights("writer")
    registry.add(first, FOLDER)
    with pytest.raises(AlreadyExistsError, match=r"'writer' is loaded already.*load it with replace, unload it first"):
        registry.add(other, FOLDER / "other", pin=True)
    assert registry.use("writer") is first
    assert (
        registry.info("writer") == AdapterInfo("writer", "d", AdapterMode.SHARED, 1)
        and registry.folder("writer") == FOLDER
    )


@pytest.mark.parametrize("other", OTHERS)
def test_replacing_gives_the_name_other_weights_and_keeps_its_pin(other):
    registry = filled(2, "writer", pinned="writer")
    registry.add(other, FOLDER / "other", replace=True)
    assert registry.use("writer") is other and registry.folder("writer") == FOLDER / "other"
    info = registry.info("writer")
    assert (info.digest, info.mode, info.pinned) == (other.digest, other.mode, True)


def test_without_a_limit_nothing_is_evicted():
    registry = filled(0, *"abcdefghij")
    assert resident(registry) == "abcdefghij"


def test_the_least_recently_used_gives_way():
    registry = filled(3, *"abc")
    registry.use("a")
    registry.add(weights("d"), FOLDER)
    assert resident(registry) == "acd"
    assert registry.use("b") is None, "its weights must be read again"
    registry.restore(weights("b"))
    assert resident(registry) == "abd"


def test_loading_again_counts_as_use():
    registry = filled(2, *"ab")
    registry.add(weights("a"), FOLDER)
    registry.add(weights("c"), FOLDER)
    assert resident(registry) == "ac"


def test_weights_that_a_turn_still_holds_need_no_read():
    registry, held = filled(1), weights("a")
    registry.add(held, FOLDER)
    registry.add(weights("b"), FOLDER)
    assert resident(registry) == "b"
    assert registry.use("a") is held and resident(registry) == "a"


def test_pinned_stay_until_they_are_unpinned():
    registry = filled(2, *"abcd", pinned="a")
    assert resident(registry) == "ad"
    registry.set_pinned("a", False)
    registry.restore(weights("b"))
    assert resident(registry) == "bd", "a was used longest ago"


def test_all_slots_pinned_is_no_room_for_another():
    registry = filled(2, *"abc", pinned="bc")
    for call in (
        lambda: registry.use("a"),
        lambda: registry.restore(weights("a")),
        lambda: registry.add(weights("x"), FOLDER),
        lambda: registry.require_slot("x"),
    ):
        with pytest.raises(OverloadedError, match=r"all 2 slots are pinned by b, c; unpin one, or raise"):
            call()
    assert resident(registry) == "bc" and [info.name for info in registry.list()] == ["a", "b", "c"]
    registry.add(weights("b", "new"), FOLDER, replace=True)
    assert resident(registry) == "bc", "a pinned name keeps its own slot"


def test_weights_read_for_a_name_that_means_others_by_now_take_no_slot():
    registry = filled(1, "a", "b")
    registry.add(weights("a", "new"), FOLDER, replace=True)
    registry.restore(weights("a", "d"))
    assert registry.info("a").digest == "new"
    registry.remove("a")
    registry.restore(weights("a", "new"))
    assert [info.name for info in registry.list()] == ["b"]
