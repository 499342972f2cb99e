"""Sampling in plain Python, written from the definitions: what the processors and whole turns are compared with."""

import math
from collections.abc import Collection, Sequence

import torch
from icarus_kernels import add_gumbel_noise

from icarus.types import SamplingParams


def naive_logits(
    logits: Sequence[float],
    params: SamplingParams,
    token_ids: Sequence[int],
    output_start: int,
    forbidden: Collection[int] = (),
) -> list[float]:
    """After penalties, with forbidden tokens at minus infinity."""
    prompt, output = list(token_ids[:output_start]), list(token_ids[output_start:])
    found = []
    for token, logit in enumerate(logits):
        if token in prompt or token in output:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logit -= params.frequency_penalty * output.count(token)
        logit -= params.presence_penalty if token in output else 0
        found.append(-math.inf if token in forbidden else logit)
    return found


def naive_kept(logits: Sequence[float], params: SamplingParams) -> set[int]:
    """The tokens that min_p, then top_k, then top_p leave."""
    best = max(logits)
    weights = {token: math.exp((logit - best) / params.temperature) for token, logit in enumerate(logits)}
    weights = {token: weight for token, weight in weights.items() if weight >= params.min_p}
    ordered = sorted(weights, key=lambda token: -weights[token])[: params.top_k or None]
    total, reached, kept = sum(weights[token] for token in ordered), 0.0, set()
    for token in ordered:
        if reached >= params.top_p * total:
            break
        kept.add(token)
        reached += weights[token]
    return kept


def naive_scores(
    logits: Sequence[float], params: SamplingParams, token_ids: Sequence[int], output_start: int
) -> list[float]:
    """The next token is the one with the highest score."""
    num_output = len(token_ids) - output_start
    forbidden = params.stop_token_ids if num_output < params.min_tokens else ()
    processed = naive_logits(logits, params, token_ids, output_start, forbidden)
    if params.temperature == 0:
        return processed
    kept = naive_kept(processed, params)
    noise = gumbel_noise(params.seed, num_output, len(logits))[0].tolist()
    return [
        logit / params.temperature + noise[token] if token in kept else -math.inf
        for token, logit in enumerate(processed)
    ]


def gumbel_noise(seed: int, output_index: int, vocab: int) -> torch.Tensor:
    """[1, vocab]; tests/kernels/test_gumbel_noise.py looks at it."""
    noise = torch.zeros(1, vocab)
    add_gumbel_noise(noise, torch.tensor([[seed, output_index]], dtype=torch.uint64))
    return noise
