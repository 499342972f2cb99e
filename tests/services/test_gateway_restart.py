"""A gateway that is killed and started again with its session file, beside a worker that lives on."""

import signal

import pytest
from services.system import BLOCK_SIZE
from services.test_chain import ids
from services.test_membership import Members

from icarus.client import Client
from icarus.errors import AlreadyExistsError


@pytest.fixture
def members(base, specialists, tmp_path):
    members = Members(base, specialists, tmp_path)
    members.start_decode("decode-0", adapters=("s0", "s1"))
    try:
        yield members
    finally:
        members.stop()


def test_sessions_survive_a_gateway_that_is_killed(members, specialists, tmp_path):
    address, other = members.gateways
    session_file = f"--gateway-session-file={tmp_path / 'sessions.db'}"

    def kill_and_start() -> None:
        gateway = members.processes[f"gateway-{address}"]
        gateway.send_signal(signal.SIGKILL)
        gateway.wait(10)
        members.start_gateway(address, session_file)
        members.wait_for(address, "decode-0")

    members.start_gateway(address, session_file)
    members.wait_for(address, "decode-0")
    ask = {"max_tokens": 12, "ignore_eos": True, "temperature": 0.8, "turn_id": "mine", "logprobs": 2}
    with Client(address) as client:
        session = client.create_session(token_ids=ids(40, 1))
        first = session.generate("s0", **ask).result()
        before = session.get()
    kill_and_start()
    with Client(address) as client:
        session = client.session(session.session_id)
        after = session.get()
        assert (after.token_ids, after.num_turns) == (before.token_ids, 1)
        assert session.generate("s0", **ask).result() == first, "the turn whose end may have been lost"
        with pytest.raises(AlreadyExistsError, match="mine"):
            session.generate("s1", **ask).result()
        second = session.generate("s1", token_ids=ids(3, 2), max_tokens=5, ignore_eos=True).result()
        assert second.usage.local_tokens >= len(before.token_ids) // BLOCK_SIZE * BLOCK_SIZE - BLOCK_SIZE
        prompt = [*before.token_ids, *ids(3, 2)]
        specialists.check_tokens("s1", [*prompt, *second.token_ids], len(prompt))
    kill_and_start()
    with Client(address) as client:
        state = client.session(session.session_id).get()
        assert (state.token_ids, state.num_turns) == ((*prompt, *second.token_ids), 2)
    members.start_gateway(other, session_file)
    assert members.processes.pop(f"gateway-{other}").wait(60) != 0
    assert "is another gateway's, which is running" in members.log(f"gateway-{other}").splitlines()[-1]
