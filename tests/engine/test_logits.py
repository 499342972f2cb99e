"""Each step from logits to a token against a plain Python reference, over random rows."""

import math
import random
from collections import Counter

import pytest
import torch
from engine.naive_sampling import gumbel_noise, naive_kept, naive_logits

from icarus.engine.logits import forbid, keep_min_p, keep_top_k, keep_top_p, penalise, scale
from icarus.engine.token_counts import TokenCounts
from icarus.types import SamplingParams

VOCAB = 37
CPU = torch.device("cpu")


def random_row(seed: int) -> torch.Tensor:
    return 3 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


def random_params(seed: int) -> SamplingParams:
    rng = random.Random(seed)
    return SamplingParams(
        temperature=rng.choice([0.3, 1.0, 1.7]),
        top_p=rng.choice([0.2, 0.6, 0.95, 1.0]),
        top_k=rng.choice([0, 1, 5, VOCAB, 1000]),
        min_p=rng.choice([0.0, 0.05, 0.5, 1.0]),
        frequency_penalty=rng.choice([-2.0, 0.0, 0.7]),
        presence_penalty=rng.choice([-1.0, 0.0, 2.0]),
        repetition_penalty=rng.choice([0.5, 1.0, 1.3]),
    )


def random_tokens(seed: int) -> tuple[list[int], int]:
    """(token ids, where the output begins)"""
    rng = random.Random(seed)
    token_ids = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 60))]
    return token_ids, rng.randrange(1, len(token_ids) + 1)


def counts_of(token_ids: list[int], output_start: int) -> TokenCounts:
    counts = TokenCounts(VOCAB, output_start, CPU)
    counts.update(token_ids)
    return counts


@pytest.mark.parametrize("seed", range(60))
def test_penalties_and_forbidden_tokens(seed):
    params, (token_ids, output_start), row = random_params(seed), random_tokens(seed), random_row(seed)
    before = row.clone()
    found = forbid(penalise(row, params, counts_of(token_ids, output_start)), {3, 5})
    expected = naive_logits(row.tolist(), params, token_ids, output_start, {3, 5})
    assert torch.equal(row, before)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert found[3] == found[5] == -math.inf


@pytest.mark.parametrize("seed", range(60))
def test_min_p_then_top_k_then_top_p(seed):
    params, row = random_params(seed), random_row(seed)
    scaled = scale(row, params.temperature)
    kept = keep_top_p(keep_top_k(keep_min_p(scaled, params.min_p), params.top_k), params.top_p)
    found = {token for token, logit in enumerate(kept.tolist()) if logit > -math.inf}
    assert found == naive_kept(row.tolist(), params)
    assert kept[list(found)].tolist() == scaled[list(found)].tolist()


def test_what_changes_nothing_by_default():
    row, params = random_row(1), SamplingParams()
    assert torch.equal(penalise(row, params, counts_of([1, 2, 2], 1)), row)
    assert torch.equal(keep_top_p(keep_top_k(keep_min_p(row, 0), 0), 1), row)
    assert not params.has_penalties
    assert SamplingParams(repetition_penalty=1.1).has_penalties


def test_frequency_counts_and_presence_does_not():
    counts = counts_of([4, 4, 4, 5, 5, 6], output_start=2)
    zeros = torch.zeros(VOCAB)
    assert penalise(zeros, SamplingParams(frequency_penalty=1), counts)[[4, 5, 6, 7]].tolist() == [-1, -2, -1, 0]
    assert penalise(zeros, SamplingParams(presence_penalty=1), counts)[[4, 5, 6, 7]].tolist() == [-1, -1, -1, 0]
    ones = torch.ones(VOCAB)
    prompt_too = penalise(ones, SamplingParams(repetition_penalty=2), counts_of([4, 5], output_start=2))
    assert prompt_too[[4, 5, 6]].tolist() == [0.5, 0.5, 1]
    assert penalise(-ones, SamplingParams(repetition_penalty=2), counts)[[4, 7]].tolist() == [-2, -1]


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_the_same_in_pieces_and_at_once(seed):
    token_ids, output_start = random_tokens(seed)
    pieces, rng = TokenCounts(VOCAB, output_start, CPU), random.Random(seed)
    end = 0
    while end < len(token_ids):
        end = min(len(token_ids), end + rng.randrange(4))
        pieces.update(token_ids[:end])
    counted = Counter(token_ids[output_start:])
    assert pieces.generated.tolist() == [counted[token] for token in range(VOCAB)]
    assert set(pieces.present.nonzero()[:, 0].tolist()) == set(token_ids)


def test_a_long_history_is_counted_once():
    class Watched(list):
        num_read = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            self.num_read += len(found)
            return found

    token_ids = Watched(random_tokens(0)[0] * 100)
    counts = counts_of(token_ids, 10)
    num_history = token_ids.num_read
    for token in (1, 2, 3):
        token_ids.append(token)
        counts.update(token_ids)
    assert (num_history, token_ids.num_read) == (len(token_ids) - 3, len(token_ids))


def test_an_unknown_stop_token_is_no_error():
    assert torch.equal(forbid(random_row(0), {VOCAB, 10**6}), random_row(0))


def test_the_smallest_temperature_is_greedy_and_finite():
    row = 100 * random_row(2)
    scaled = scale(row, 1e-38)
    assert scaled.max() == 0 and not scaled.isnan().any()
    assert int((keep_top_p(scaled, 0.5) + gumbel_noise(1, 2, VOCAB)[0]).argmax()) == int(row.argmax())
