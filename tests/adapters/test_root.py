"""Only what lies under the adapter root is read, whatever the path looks like."""

from pathlib import Path

import pytest

from icarus.adapters.root import resolve_folder
from icarus.errors import InvalidInputError


@pytest.fixture
def root(tmp_path) -> Path:
    """An adapter inside of the root, one outside, and a neighbour whose name begins like the root's."""
    for folder in ("root/inside", "outside", "root-too"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "adapter_config.json").write_text("{}")
    return tmp_path / "root"


def test_inside_by_any_way(root):
    (root / "link").symlink_to(root / "inside")
    for path in (root / "inside", root / "inside/../inside", "inside", "link", "./link/"):
        assert resolve_folder(path, "a", str(root)) == root / "inside"
    root.parent.joinpath("other").symlink_to(root)
    assert resolve_folder(root.parent / "other" / "inside", "a", str(root)) == root / "inside"
    assert resolve_folder("inside", "a", str(root.parent / "other")) == root / "inside"


def test_outside_is_refused_by_any_way(root):
    (root / "link").symlink_to(root.parent / "outside")
    for path in (
        root.parent / "outside",
        root / "../outside",
        "../outside",
        "link",
        "/",
        "..",
        root.parent / "root-too",
    ):
        with pytest.raises(InvalidInputError, match=r"adapter 'a': .* leads outside of this worker's adapter root"):
            resolve_folder(path, "a", str(root))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "icarus.json"])
def test_a_file_that_leads_outside_is_refused(root, file):
    (root / "inside" / file).unlink(missing_ok=True)
    (root / "inside" / file).symlink_to(root.parent / "outside" / "adapter_config.json")
    with pytest.raises(InvalidInputError, match=file):
        resolve_folder("inside", "a", str(root))


def test_without_a_root_any_folder_will_do(root):
    assert resolve_folder(root.parent / "outside", "a", "") == root.parent / "outside"


def test_what_is_no_path_is_refused(root):
    (root / "loop").symlink_to(root / "loop")
    for path in ("a\0b", "loop/x", "x" * 5000):
        for where in ("", str(root)):
            with pytest.raises(InvalidInputError, match=r"adapter 'a'"):
                resolve_folder(path if not path.startswith("loop") else root / path, "a", where)
