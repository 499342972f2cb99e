"""Which examples a step sees, a pure function of (seed, step), and their tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icarus.training.examples import Example

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right. Row r of an example is the r-th token whose successor is part of the answer."""

    input_ids: Tensor
    """[examples, tokens]; without each answer's last token, which nothing follows"""
    positions: Tensor
    """[examples, rows]: where the rows are in `input_ids`; 0 in padding"""
    labels: Tensor
    """[examples, rows]: the answer's tokens; IGNORED in padding"""

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in (self.input_ids, self.positions, self.labels)))


def collate(examples: Sequence[Example]) -> Batch:
    lengths = [len(example) - 1 for example in examples]
    num_rows = max(len(example.answer_ids) for example in examples)
    input_ids = torch.zeros(len(examples), max(lengths), dtype=torch.long)
    positions = torch.zeros(len(examples), num_rows, dtype=torch.long)
    labels = torch.full((len(examples), num_rows), IGNORED)
    for index, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        input_ids[index, :length] = torch.tensor((*example.prompt_ids, *example.answer_ids)[:-1])
        rows = len(example.answer_ids)
        positions[index, :rows] = torch.arange(len(example.prompt_ids) - 1, length)
        labels[index, :rows] = torch.tensor(example.answer_ids)
    return Batch(input_ids, positions, labels)


class DataOrder:
    """Every epoch is a fresh permutation; a step takes the next `step_size` examples, across epochs too."""

    def __init__(self, num_examples: int, step_size: int, seed: int):
        self._num_examples = num_examples
        self._step_size = step_size
        self._seed = seed
        self._epoch, self._permutation = -1, []

    def step(self, step: int) -> list[int]:
        """Indices of the examples of a step; steps count from 0."""
        return [self._at(place) for place in range(step * self._step_size, (step + 1) * self._step_size)]

    def _at(self, place: int) -> int:
        epoch, offset = divmod(place, self._num_examples)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self._num_examples, generator=generator).tolist()
        return self._permutation[offset]


def split_step(examples: Sequence[Example], num_passes: int, process: int, num_processes: int) -> Iterator[Batch]:
    """This process's passes of a step. Examples of like length share a pass, so little is padding.

    Every process has the same number of passes; there are `num_passes * num_processes` in all, of nearly equal size.
    """
    ordered = sorted(examples, key=len)
    num_chunks = num_passes * num_processes
    bounds = [index * len(ordered) // num_chunks for index in range(num_chunks + 1)]
    for chunk in range(process, num_chunks, num_processes):
        yield collate(ordered[bounds[chunk] : bounds[chunk + 1]])
