"""What penalties are computed from."""

from collections.abc import Sequence

import torch


class TokenCounts:
    """Which tokens a request holds, and how often each was generated. Each token is counted once, when it is new."""

    def __init__(self, vocab_size: int, output_start: int, device: torch.device):
        self.present = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        """[vocab]: whether the token is in the prompt or the output."""
        self.generated = torch.zeros(vocab_size, device=device)
        """[vocab] float32: how often it is in the output, which begins at position `output_start`."""
        self._output_start = output_start
        self._num_counted = 0

    def update(self, token_ids: Sequence[int]) -> None:
        """Takes in what was added to `token_ids`, prompt and output, since the last call."""
        first = self._num_counted
        new = torch.tensor(token_ids[first:], dtype=torch.long, device=self.present.device)
        output = new[max(self._output_start - first, 0) :]
        self.present[new] = True
        self.generated.index_add_(0, output, torch.ones_like(output, dtype=self.generated.dtype))
        self._num_counted = len(token_ids)
