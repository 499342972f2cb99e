"""On files as Linux writes them: a test cannot put itself into a group."""

from pathlib import Path

import pytest

from icarus.cache.control_groups import room_in_groups

MIB = 1 << 20


def group(folder: Path, limit: str, taken: int, *, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{taken}\n")
    stat = {"anon": taken - cached, "file": cached, "inactive_file": cached // 4, "active_file": cached - cached // 4}
    (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))


@pytest.fixture
def room(tmp_path):
    def room(membership: str) -> list[int]:
        (tmp_path / "cgroup").write_text(membership)
        return list(room_in_groups(tmp_path / "cgroup", tmp_path / "root"))

    return room


@pytest.mark.parametrize("seen_as", ["/", "/kubepods.slice/pod1/container"])
def test_a_container_sees_its_group_as_the_root(tmp_path, room, seen_as):
    """Whatever its name is outside. What files take of the page cache is given back."""
    group(tmp_path / "root", str(100 * MIB), 70 * MIB, cached=20 * MIB)
    assert room(f"0::{seen_as}\n") == [50 * MIB]


def test_every_group_around_the_process_counts(tmp_path, room):
    group(tmp_path / "root/system.slice", str(100 * MIB), 90 * MIB)
    group(tmp_path / "root/system.slice/icarus.service", "max", 10 * MIB)
    assert room("0::/system.slice/icarus.service\n") == [10 * MIB]
    group(tmp_path / "root/system.slice/icarus.service", str(8 * MIB), 10 * MIB)
    assert room("0::/system.slice/icarus.service\n") == [0, 10 * MIB]


def test_without_a_limit_or_groups_of_version_2(tmp_path, room):
    assert room("0::/\n") == room("9:memory:/docker/1\n8:pids:/\n") == []
    assert list(room_in_groups(tmp_path / "absent", tmp_path)) == []
