"""Generated specialists: nonsense at the true cost."""

from pathlib import Path

from icarus.adapters.generate import write_random_adapter
from icarus.model.config import ModelConfig
from icarus.model.digest import base_digest


def write_specialists(folder: Path, model_folder: Path, count: int, rank: int) -> dict[str, Path]:
    """Name -> PEFT folder of each. They adapt all that a shared specialist may; served as private, the same."""
    model, digest = ModelConfig.from_folder(model_folder), base_digest(model_folder)
    return {
        f"s{index}": write_random_adapter(folder / f"s{index}", model, digest, rank=rank, seed=index)
        for index in range(count)
    }
