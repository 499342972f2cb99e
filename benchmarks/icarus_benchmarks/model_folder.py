"""Which model is measured."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from icarus.model.hub import resolve_model
from icarus_benchmarks.model_shapes import SHAPES, write_random_model


@contextmanager
def model_folder(path: str, random_weights: str, progress: Callable[[str], None]) -> Iterator[Path]:
    """That of the model `path`; or, where `random_weights` names a shape, one that is written now and removed at the
    end. Raises ConfigError where there is no such model."""
    if not random_weights:
        yield resolve_model(path, progress)
        return
    with tempfile.TemporaryDirectory(prefix="icarus-bench-") as temporary:
        progress(f"writing a random model of the shape of {random_weights}")
        yield write_random_model(Path(temporary) / random_weights, SHAPES[random_weights])
