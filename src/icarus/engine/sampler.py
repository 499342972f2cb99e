"""From logits to tokens. The noise is a pure function of (seed, output index): no generator state is kept, so a turn
that is preempted or goes on at another worker draws the same tokens, whoever else is in its batch."""

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from icarus.engine.logits import forbid, keep_min_p, keep_top_k, keep_top_p, penalise, scale
from icarus.engine.request import Request, Sampled
from icarus.engine.token_counts import TokenCounts
from icarus.types import TokenLogprob, TokenLogprobs


def sample(logits: Tensor, requests: Sequence[Request]) -> list[Sampled]:
    """logits [n, vocab] float32, one row a request -> the next token of each. Counts tokens on requests with
    penalties."""
    tokens = logits.argmax(-1)
    for row, request in enumerate(requests):
        if not _is_plain(request):
            tokens[row] = _choose(logits[row], request)
    logprobs = _logprobs(logits, tokens, requests)
    return [Sampled(token_id, logprobs.get(row)) for row, token_id in enumerate(tokens.tolist())]


def _is_plain(request: Request) -> bool:
    """Whether the likeliest token is the choice."""
    params = request.sampling
    return params.temperature == 0 and not params.has_penalties and not _must_go_on(request)


def _must_go_on(request: Request) -> bool:
    return request.num_output < request.sampling.min_tokens


def _choose(logits: Tensor, request: Request) -> Tensor:
    """logits [vocab] -> the token's id, []."""
    params = request.sampling
    if params.has_penalties:
        logits = penalise(logits, params, _counts(request, logits))
    if _must_go_on(request):
        logits = forbid(logits, params.stop_token_ids)
    if params.temperature == 0:
        return logits.argmax()
    logits = keep_min_p(scale(logits, params.temperature), params.min_p)
    logits = keep_top_p(keep_top_k(logits, params.top_k), params.top_p)
    return (logits + gumbel_noise(params.seed, request.num_output, logits.shape[0]).to(logits.device)).argmax()


def _counts(request: Request, logits: Tensor) -> TokenCounts:
    if request.token_counts is None:
        request.token_counts = TokenCounts(logits.shape[0], request.output_start, logits.device)
    request.token_counts.update(request.token_ids)
    return request.token_counts


def gumbel_noise(seed: int, output_index: int, size: int) -> Tensor:
    """[size] float32, always drawn on the CPU so that every device sees the same."""
    key = hashlib.sha256(struct.pack("<QQ", seed, output_index)).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
    return -torch.empty(size).exponential_(generator=generator).log()


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
