"""add_gumbel_noise against its reference, and what sampling wants of it. Seeds are fixed, so luck has no part in it."""

import pytest
import torch
from icarus_kernels import add_gumbel_noise, add_gumbel_noise_reference
from icarus_kernels.cpu_kernel import CPUKernel, arguments_of, at_address
from icarus_kernels.cpu_lanes import WIDTH, load, store
from icarus_kernels.gumbel_noise import philox
from icarus_kernels.gumbel_noise_cpu import gumbel


def keys_of(pairs):
    return torch.tensor(list(pairs), dtype=torch.uint64).view(-1, 2)


def noise_of(pairs, vocab):
    keys = keys_of(pairs)
    noise = torch.zeros(len(keys), vocab)
    add_gumbel_noise(noise, keys)
    return noise


def uniform_of(noise):
    return torch.exp(-torch.exp(-noise.double()))


def chi_square(counts, expected):
    return float(((counts - expected).square() / expected).sum())


def test_philox_by_its_authors_vectors():
    """Random123's kat_vectors."""
    assert philox((0,) * 4, (0,) * 2) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    counter, key = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox(counter, key) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize("vocab", [1, 15, 16, 64, 65, 333])
def test_matches_the_reference(vocab):
    torch.manual_seed(vocab)
    keys = keys_of([(0, 0), (2**64 - 1, 5), (12345678901234567890, 2**31 + 7)])
    got = torch.randn(3, vocab)
    expected = got.clone()
    add_gumbel_noise(got, keys)
    add_gumbel_noise_reference(expected, keys)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_function_of_seed_index_and_token_alone():
    """Not of the batch, the vocabulary's size or the threads."""
    pairs = [(seed, index) for seed in (0, 1, 2**32, 2**63) for index in (0, 1, 2**20)]
    batch, before = noise_of(pairs, 5000), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(noise_of(pairs, 5000), batch)
    finally:
        torch.set_num_threads(before)
    for row, pair in zip(batch, pairs, strict=True):
        assert torch.equal(noise_of([pair], 700)[0], row[:700])
    assert len({tuple(row.tolist()) for row in batch}) == len(pairs)


def test_uniform():
    uniform = uniform_of(noise_of([(7, 0)], 2**20))
    counts = torch.histc(uniform, 256, 0, 1)
    assert chi_square(counts, torch.full_like(counts, 2**20 / 256)) < 330, "one in a thousand is above, by luck"
    assert 0.01 < (1 - uniform.max()) * 2**20 < 5, "the largest are as fine as they are rare"


@pytest.mark.parametrize("other", [(8, 0), (7, 1), (7 + 2**32, 0), (8, 1)])
def test_neighbouring_seeds_and_indices_are_independent(other):
    a, b = uniform_of(noise_of([(7, 0), other], 2**17))
    assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 4 / 2**8.5
    joint = torch.histogramdd(torch.stack((a, b), 1), [16, 16], range=[0.0, 1.0, 0.0, 1.0]).hist
    assert chi_square(joint, torch.full_like(joint, 2**17 / 256)) < 330


@pytest.mark.parametrize("lag", [1, 16, 64])
def test_neighbouring_tokens_are_independent(lag):
    uniform = uniform_of(noise_of([(7, 0)], 2**17))[0]
    assert abs(float(torch.corrcoef(torch.stack((uniform[lag:], uniform[:-lag])))[0, 1])) < 4 / 2**8.5


@pytest.mark.parametrize("by", ["index", "seed"])
def test_draws_the_distribution(by):
    num, logits = 50_000, torch.tensor([0.0, 1.0, -1.0, 2.0, -4.0, 0.5, -torch.inf, -2.0])
    scores = logits.repeat(num, 1)
    add_gumbel_noise(scores, keys_of((7, i) if by == "index" else (i, 7) for i in range(num)))
    counts = scores.argmax(-1).bincount(minlength=8).double()
    possible = logits > -torch.inf
    assert counts[6] == 0
    assert chi_square(counts[possible], num * logits.double().softmax(0)[possible]) < 22.5, "one in a thousand is above"


def _extremes(p):
    a = arguments_of(p)
    uniform = at_address(a[0], p)
    store(uniform, 0, gumbel(load(uniform, 0)))


def test_no_infinity():
    least, most = 2.0**-33, 1.0
    uniform = torch.tensor([least, most] * (WIDTH // 2))
    CPUKernel(_extremes, (torch.float32,))(torch.float32, 1, uniform.data_ptr())
    assert uniform[:2].tolist() == pytest.approx([22.8739, -2.8115], abs=1e-3)


def test_refuses_what_it_would_misread():
    logits, keys = torch.zeros(2, 8), keys_of([(1, 1), (2, 2)])
    for wrong in ((logits.bfloat16(), keys), (torch.zeros(2, 16)[:, ::2], keys), (logits, keys.view(torch.int64))):
        with pytest.raises(AssertionError):
            add_gumbel_noise(*wrong)
