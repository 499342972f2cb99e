"""What is done to one row of logits before a token is chosen, in the order of this file. Every [vocab] is float32."""

from collections.abc import Collection

import torch
from torch import Tensor

from icarus.engine.token_counts import TokenCounts
from icarus.types import SamplingParams


def penalise(logits: Tensor, params: SamplingParams, counts: TokenCounts) -> Tensor:
    """Repetition first, over prompt and output; then frequency and presence, over the output alone."""
    if params.repetition_penalty != 1:
        weaker = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
        logits = torch.where(counts.present, weaker, logits)
    frequency = params.frequency_penalty * counts.generated
    return logits - frequency - params.presence_penalty * (counts.generated > 0)


def forbid(logits: Tensor, token_ids: Collection[int]) -> Tensor:
    """None of `token_ids` can be chosen. A tokenizer may know more ids than the model has logits for."""
    known = [token_id for token_id in token_ids if token_id < logits.shape[0]]
    return logits.index_fill(0, torch.tensor(known, dtype=torch.long, device=logits.device), -torch.inf)


def scale(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Temperature above 0; the best token's logit becomes 0, so that a small temperature cannot overflow. For rows of
    logits too."""
    return (logits - logits.amax(-1, keepdim=True)).div_(temperature)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keeps tokens that are at least `min_p` times as likely as the likeliest."""
    if min_p == 0:
        return logits
    probabilities = logits.softmax(0)
    return logits.masked_fill(probabilities < min_p * probabilities.max(), -torch.inf)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keeps the `top_k` likeliest tokens; 0 keeps all."""
    if top_k == 0 or top_k >= logits.shape[0]:
        return logits
    kept = logits.topk(top_k).indices
    return torch.full_like(logits, -torch.inf).scatter(0, kept, logits[kept])


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keeps the smallest set of likeliest tokens whose probabilities, among those still there, reach `top_p`."""
    if top_p >= 1:
        return logits
    probabilities = logits.softmax(0)
    # What is left out here has less than 1 - top_p in all: only the rest needs sorting, few tokens as a rule.
    likely = (probabilities >= (1 - top_p) / len(logits)).nonzero()[:, 0]
    ordered, order = probabilities[likely].sort(descending=True, stable=True)
    kept = likely[order][ordered.cumsum(0) - ordered < top_p]
    return torch.full_like(logits, -torch.inf).scatter(0, kept, logits[kept])
