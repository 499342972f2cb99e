"""From logits to tokens. The noise is a pure function of (seed, output index): no generator state is kept, so a turn
that is preempted or goes on at another worker draws the same tokens, whoever else is in its batch."""

from collections.abc import Sequence

import torch
from icarus_kernels import add_gumbel_noise
from torch import Tensor

from icarus.engine.events import Failed, Sampled
from icarus.engine.logits import forbid, keep_min_p, keep_top_k, keep_top_p, penalise, scale
from icarus.engine.request import Request
from icarus.engine.token_counts import TokenCounts
from icarus.errors import IcarusError
from icarus.types import SamplingParams, TokenLogprob, TokenLogprobs


def sample(logits: Tensor, requests: Sequence[Request]) -> list[Sampled | Failed]:
    """logits [n, vocab] float32, one row a request -> the next token of each, or that its logits are not finite. Counts
    tokens on requests with penalties."""
    adjusted = _adjust(logits, requests)
    best = adjusted.max(-1)  # of a row with NaN that is NaN
    tokens = best.indices
    drawn = [row for row, request in enumerate(requests) if request.sampling.temperature > 0]
    if drawn:
        rows = drawn if len(drawn) < len(requests) else slice(None)  # all: no copy
        tokens[rows] = _draw(adjusted[rows], [requests[row] for row in drawn])
    logprobs = _logprobs(logits, tokens, requests)
    token_ids = torch.where(best.values.isfinite(), tokens, -1).tolist()  # one copy from the device
    return [
        Sampled(token_id, logprobs.get(row)) if token_id >= 0 else _not_finite(requests[row])
        for row, token_id in enumerate(token_ids)
    ]


def _not_finite(request: Request) -> Failed:
    specialist = f"specialist {request.writer!r}" if request.writer else "the base model"
    return Failed(
        IcarusError(
            f"the model's logits are not finite, for {specialist}: check the weights; where [model] dtype is float16, "
            "try bfloat16 or float32"
        )
    )


def _adjust(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """Logits with penalties, and without what must not be chosen: a copy where some request has either."""
    adjusted = logits
    for row, request in enumerate(requests):
        params, must_go_on = request.sampling, request.num_output < request.sampling.min_tokens
        if not params.has_penalties and not must_go_on:
            continue
        changed = logits[row]
        if params.has_penalties:
            changed = penalise(changed, params, _counts(request, changed))
        if must_go_on:
            changed = forbid(changed, params.stop_token_ids)
        adjusted = logits.clone() if adjusted is logits else adjusted
        adjusted[row] = changed
    return adjusted


def _draw(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """logits [n, vocab] of requests with a temperature -> token ids [n]."""
    device = logits.device
    logits = scale(logits, torch.tensor([[request.sampling.temperature] for request in requests], device=device))
    for row, request in enumerate(requests):
        if _truncates(request.sampling):
            logits[row] = _truncate(logits[row], request.sampling)
    keys = [(request.sampling.seed, request.num_output) for request in requests]
    add_gumbel_noise(logits, torch.tensor(keys, dtype=torch.uint64, device=device))
    return logits.argmax(-1)


def _truncates(params: SamplingParams) -> bool:
    return params.min_p > 0 or params.top_k > 0 or params.top_p < 1


def _truncate(logits: Tensor, params: SamplingParams) -> Tensor:
    return keep_top_p(keep_top_k(keep_min_p(logits, params.min_p), params.top_k), params.top_p)


def _counts(request: Request, logits: Tensor) -> TokenCounts:
    if request.token_counts is None:
        request.token_counts = TokenCounts(logits.shape[0], request.output_start, logits.device)
    request.token_counts.update(request.token_ids)
    return request.token_counts


def _logprobs(logits: Tensor, tokens: Tensor, requests: Sequence[Request]) -> dict[int, TokenLogprobs]:
    """Row -> log-probabilities, of the rows that want them: of the model's own logits, before any processing."""
    wanted = {row: num for row, request in enumerate(requests) if (num := request.sampling.logprobs) is not None}
    if not wanted:
        return {}
    rows = torch.tensor(list(wanted), device=logits.device)
    logprobs = logits[rows].log_softmax(-1)
    chosen = logprobs.gather(1, tokens[rows, None])[:, 0].tolist()
    top = logprobs.topk(min(max(wanted.values()), logits.shape[1]))
    found = zip(wanted.items(), tokens[rows].tolist(), chosen, top.indices.tolist(), top.values.tolist(), strict=True)
    return {
        row: TokenLogprobs(TokenLogprob(token_id, logprob), tuple(map(TokenLogprob, ids[:num], values[:num])))
        for (row, num), token_id, logprob, ids, values in found
    }
