"""What the debug RPCs ask of the engine."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from icarus.engine.engine import Engine
from icarus.worker.debug_service import DebugServicer
from icarus.worker.v1 import debug_service_pb2 as pb


@pytest.mark.parametrize(("skip_check", "command"), [(False, Engine.check), (True, Engine.state)])
async def test_the_pool_is_walked_over_only_for_a_check(skip_check, command):
    asked, names = [], [field.name for field in pb.CheckIntegrityResponse.DESCRIPTOR.fields]
    pool = SimpleNamespace(total=7, free=7, cached=0, used=0, quarantined=0)
    state = SimpleNamespace(pool=pool, **dict.fromkeys(names, 0))

    def call(command):
        asked.append(command)
        future = Future()
        future.set_result(state)
        return future

    transfer = SimpleNamespace(reads=0, bytes_read=0)
    worker = SimpleNamespace(
        engine=SimpleNamespace(call=call), transfer=transfer, identity=SimpleNamespace(block_bytes=1)
    )
    request = pb.CheckIntegrityRequest(skip_check=skip_check)
    assert (await DebugServicer(worker, test_hooks=False).CheckIntegrity(request, None)).total_blocks == 7
    assert asked == [command]
