"""A decode worker as a gateway sees it: turns that wait for a prefill, and adapters that changed in mid-turn."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from icarus_decode.decode_service import DecodeServicer
from services.system import BLOCK_SIZE
from services.test_chain import ids

from icarus.config import CacheSection, Config, EngineSection, ModelSection, TransferSection, WorkerSection
from icarus.engine.engine import Engine
from icarus.rpc.channel import open_channel
from icarus.rpc.messages import sampling_to_wire
from icarus.rpc.metrics_server import make_registry
from icarus.rpc.server import Service, make_server
from icarus.types import AdapterMode, Role, SamplingParams, WorkerId
from icarus.worker.block_service import BlockServicer
from icarus.worker.build import build_worker
from icarus.worker.change_feed import ChangeFeed
from icarus.worker.metrics import WorkerMetrics
from icarus.worker.v1 import decode_service_pb2 as pb
from icarus.worker.v1 import decode_service_pb2_grpc as pb_grpc


class Member:
    """A decode worker in this process, without a gateway."""

    def __init__(self, worker, server, channel):
        self.worker, self.address = worker, server.address
        self._decode = pb_grpc.DecodeServiceStub(channel)

    def call(self, begin: pb.BeginTurn, *more: pb.DecodeRequest):
        """The call that runs a turn; it says nothing after `more`, and stays open."""

        async def requests():
            for request in (pb.DecodeRequest(begin=begin), *more):
                yield request
            await asyncio.Event().wait()

        return self._decode.Decode(requests())

    async def run(self, begin: pb.BeginTurn, *more: pb.DecodeRequest) -> list[pb.DecodeResponse]:
        """What the worker says up to the turn's end."""
        answers = []
        async with asyncio.timeout(60):
            call = self.call(begin, *more)
            async for answer in call:
                answers.append(answer)
                if answer.HasField("finished"):
                    call.cancel()
                    return answers
        raise AssertionError(answers)

    async def check_free(self) -> None:
        state = await asyncio.wrap_future(self.worker.engine.post(Engine.check))
        assert (state.pool.used, state.running_requests, state.waiting_requests) == (0, 0, 0)


@pytest.fixture
def start(base, specialists):
    @asynccontextmanager
    async def start(stage_timeout_seconds: float = 60.0, adapters=()):
        config = Config(
            model=ModelSection(path=str(base), name="tiny", dtype="float32"),
            cache=CacheSection(num_blocks=128, block_size=BLOCK_SIZE),
            engine=EngineSection(num_threads=1),
            transfer=TransferSection(read_timeout_seconds=20.0),
            worker=WorkerSection(adapters=adapters),
        )
        metrics = WorkerMetrics.register(make_registry())
        worker = await build_worker(config, Role.DECODE, WorkerId("w"), ChangeFeed(), metrics)
        servicers = DecodeServicer(worker, stage_timeout_seconds), BlockServicer(worker)
        server = make_server("127.0.0.1:0", [*map(Service.of, servicers)])
        await worker.start()
        await server.start()
        async with open_channel(server.address) as channel:
            yield Member(worker, server, channel)
        await server.drain(0)
        assert await worker.stop()

    return start


def turn(token_ids: list[int], **fields) -> pb.BeginTurn:
    sampling = sampling_to_wire(SamplingParams(max_tokens=1))
    return pb.BeginTurn(tenant="default", turn_id="t", token_ids=token_ids, sampling=sampling, **fields)


async def test_a_reservation_whose_prefill_never_comes_expires(start):
    async with start(stage_timeout_seconds=0.2) as member:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await member.run(turn(ids(60, 1), await_prefill=True))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no word of its prefill for 0.2 s" in caught.value.details()
        await member.check_free()


async def test_a_turn_whose_prefill_failed_reads_from_its_sources(start):
    prompt = ids(60, 2)
    async with start() as owner, start() as member:
        await owner.run(turn(prompt))
        source = {"worker_id": "owner", "address": owner.address, "num_blocks": len(prompt) // BLOCK_SIZE}
        begin = turn(prompt, await_prefill=True, sources=[source])
        answers = await member.run(begin, pb.DecodeRequest(staged=pb.PrefillStaged()))
        usage = next(answer.prompt for answer in answers if answer.HasField("prompt"))
        assert (usage.remote_tokens, usage.local_tokens) == (len(prompt) // BLOCK_SIZE * BLOCK_SIZE, 0)
        await member.check_free()
        await owner.check_free()


async def test_a_turn_that_began_with_another_mode_is_not_served(start, specialists):
    """The gateway pinned a private adapter, and it was replaced by the same folder as shared."""
    async with start(adapters=(f"s0={specialists.folder('s0')}",)) as member:
        digest = member.worker.adapters.list()[0].digest
        for mode, code in ((AdapterMode.PRIVATE, grpc.StatusCode.NOT_FOUND), (AdapterMode.SHARED, None)):
            begin = turn(ids(20, 3), adapter="s0", adapter_digest=digest, adapter_mode=mode.value)
            try:
                await member.run(begin)
            except grpc.aio.AioRpcError as error:
                assert error.code() is code and "'s0' is shared here, no longer private" in error.details()
            else:
                assert code is None
