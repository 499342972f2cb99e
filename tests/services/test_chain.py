"""Reuse that is really there: one history, many specialists, two decode workers."""

import torch
from services.system import BLOCK_SIZE

from icarus.client import Client
from icarus.types import AdapterMode

CHAIN = ["s0", "s1", "s2", "s3", "s0", "s3", "s2", "s1"]


def ids(length: int, seed: int) -> list[int]:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def play(client: Client, models: list[str], seed: int, check=None) -> tuple[list, int]:
    """A session of turns by `models`; (results, length of the final history)."""
    session = client.create_session(token_ids=ids(100, seed))
    results = []
    for turn, model in enumerate(models):
        if turn:
            session.append(token_ids=ids(13, seed + turn))
        history = list(session.token_ids())
        results.append(session.generate(model, max_tokens=11, ignore_eos=True).result())
        if check:
            check(model, history, results[-1])
    length = len(session.token_ids())
    session.delete()
    return results, length


def test_the_chain_computes_each_position_about_once(system, client):
    written = system.kv_written()
    results, length = play(client, CHAIN, seed=1000, check=system.check_greedy)
    written = system.kv_written() - written
    assert {result.route.decode_worker for result in results} == {"decode-0", "decode-1"}
    unique = length - 1
    assert unique <= written <= unique + BLOCK_SIZE * len(CHAIN)
    assert written == sum(result.usage.kv_written_tokens for result in results)
    for result in results:
        usage = result.usage
        assert usage.prompt_tokens == usage.computed_tokens + usage.local_tokens + usage.remote_tokens
        assert usage.cross_adapter_tokens <= usage.cached_tokens
    assert results[0].route.prefill_worker == "prefill-0"
    assert results[0].usage.computed_tokens == 100
    assert results[0].usage.remote_tokens == 0
    for result in results[1:]:
        assert result.usage.cached_tokens >= result.usage.prompt_tokens - 13 - 2 * BLOCK_SIZE


def test_what_one_specialist_generates_another_reads_on_the_other_worker(system, client):
    first, second = play(client, ["s0", "s1"], seed=2000, check=system.check_greedy)[0]
    assert (first.route.decode_worker, second.route.decode_worker) == ("decode-0", "decode-1")
    covered = second.usage.prompt_tokens - 13 - 1
    assert second.usage.remote_tokens == covered // BLOCK_SIZE * BLOCK_SIZE
    assert second.usage.remote_tokens > 100, "generated tokens are among those that were read"
    assert second.usage.cross_adapter_tokens == second.usage.remote_tokens
    assert second.usage.transfer_reads == 1
    block_bytes = system.workers()["decode-1"].block_bytes
    assert second.usage.transfer_bytes == second.usage.remote_tokens // BLOCK_SIZE * block_bytes


def test_without_reuse_the_same_check_fails(make_system):
    with make_system(prefix_reuse=False) as system, Client(system.address) as client:
        results, length = play(client, CHAIN, seed=3000, check=system.check_greedy)
        assert system.kv_written() > length - 1 + BLOCK_SIZE * len(CHAIN)
        assert sum(result.usage.cached_tokens for result in results) == 0
        system.wait_until_idle()


def test_a_private_specialist_reads_only_its_own_kv(system, client):
    client.load_adapter("own", str(system.specialists.folder("own")), mode=AdapterMode.PRIVATE)
    try:
        shared, own, again = play(client, ["s0", "own", "own"], seed=4000, check=system.check_greedy)[0]
        assert own.usage.cached_tokens == 0
        assert own.route.prefill_worker == "prefill-0"
        assert again.usage.cached_tokens > 100
        assert again.usage.cross_adapter_tokens == 0
        assert shared.usage.computed_tokens == 100
    finally:
        client.unload_adapter("own")


def test_tenants_never_share_blocks(system, client):
    prompt = ids(60, 5000)
    system.cache(client, "both", prompt)
    assert client.generate("s0", token_ids=prompt, max_tokens=2).result().usage.cached_tokens > 0
    with Client(system.address, tenant="another") as other:
        assert other.generate("s0", token_ids=prompt, max_tokens=2).result().usage.cached_tokens == 0


def test_many_turns_at_once_on_both_workers(system, client):
    models = ["s0", "s1", "s2", "s3", "both", "tiny", "s0", "both", "tiny", "s3"]
    prompts = [ids(20 + 9 * i, 6000 + i) for i in range(len(models))]
    streams = [
        client.generate(model, token_ids=prompt, max_tokens=16, ignore_eos=True)
        for model, prompt in zip(models, prompts, strict=True)
    ]
    for model, prompt, stream in zip(models, prompts, streams, strict=True):
        result = stream.result()
        assert len(result.token_ids) == 16
        system.check_greedy(model, prompt, result)
