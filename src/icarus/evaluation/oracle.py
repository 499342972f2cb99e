"""Greedy answers by transformers and peft alone: slow, simple, and the reference for the served ones."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.cache_utils import DynamicCache

from icarus.training.lora_model import load_base
from icarus.training.loss import backbone_of, causal_of, decode_rows
from icarus.types import AdapterMode

PADDING = 0


def load_oracle(base: Path, adapter: Path, dtype: str) -> PeftModel:
    """The base with the adapter, in one precision, as the server has them."""
    model = PeftModel.from_pretrained(load_base(base, dtype, 0), str(adapter), autocast_adapter_dtype=False)
    return model.to(getattr(torch, dtype)).eval()


class Oracle:
    """A model that answers. `mode` None is the base alone, and `model` then has any adapter or is a plain model."""

    def __init__(self, model: Any, mode: AdapterMode | None, end_ids: Sequence[int]):
        self._model = model
        self._mode = mode
        self._device = next(model.parameters()).device
        self._end_ids = torch.tensor(list(end_ids), device=self._device)
        self._causal = causal_of(model)
        self._backbone = backbone_of(model)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """The greedy answer of each prompt, up to and with its end token, or `max_tokens` long."""
        ids, real = (tensor.to(self._device) for tensor in _pad_left(prompts))
        cache, answers = DynamicCache(), []
        done = torch.zeros(len(prompts), dtype=torch.bool, device=self._device)
        new_ids = ids
        for _ in range(max_tokens):
            token_ids = self._next(new_ids, real, cache)
            answers.append(token_ids)
            done |= torch.isin(token_ids, self._end_ids)
            if done.all():
                break
            new_ids = token_ids[:, None]
            real = torch.cat((real, torch.ones_like(new_ids, dtype=torch.bool)), dim=1)
        return list(self._cut(torch.stack(answers, dim=1)))

    def _next(self, new_ids: Tensor, real: Tensor, cache: DynamicCache) -> Tensor:
        """Writes the KV of `new_ids` [prompts, n] and chooses the next token of each prompt: [prompts]."""
        positions = (real.long().cumsum(1) - 1).clamp(min=0)[:, -new_ids.shape[1] :]
        as_base = self._mode is AdapterMode.SHARED or (self._mode is None and isinstance(self._model, PeftModel))
        with self._model.disable_adapter() if as_base else nullcontext():
            hidden = self._backbone(
                input_ids=new_ids,
                attention_mask=real.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        if self._mode is AdapterMode.SHARED:
            hidden = decode_rows(self._model, new_ids[:, -1:], positions[:, -1:], cache, real[:, None])[:, -1]
        return self._causal.get_output_embeddings()(hidden).argmax(-1)

    def _cut(self, answers: Tensor) -> Iterator[list[int]]:
        for row in answers:
            ends = torch.isin(row, self._end_ids).nonzero()
            yield row[: int(ends[0]) + 1 if len(ends) else None].tolist()


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids, and which of them are real: [prompts, tokens] both."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PADDING] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    real = torch.tensor([[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    return ids, real
