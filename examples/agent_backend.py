"""An agent loop in which three specialists share one session: each reads the KV that the others left.

Start a gateway whose specialists are called planner, tool_caller and writer: your own, or to see it run

    icarus up --worker-adapters planner=examples/specialists/intents \
              --worker-adapters tool_caller=examples/specialists/tools \
              --worker-adapters writer=examples/specialists/maths

then: python examples/agent_backend.py "How many vents did the controller open last night?"
"""

import argparse
import asyncio
import json
import sys

from icarus.client import AsyncClient, AsyncSession, TurnResult
from icarus.errors import IcarusError

EVENT_LOG = {"vents_opened": 11, "between": "02:00 and 05:00", "cause": "humidity"}


def run_tool(call: str) -> str:
    """A real backend parses the call and runs the tool."""
    return json.dumps({"call": call.strip()[:80], "event_log": EVENT_LOG})


async def turn(session: AsyncSession, specialist: str, content: str, role: str = "user", **sampling) -> TurnResult:
    """Lets a specialist answer, shows it, and shows how much of the history it did not have to compute."""
    sys.stdout.write(f"\n[{specialist}] ")
    stream = session.generate(specialist, messages=[{"role": role, "content": content}], **sampling)
    async for delta in stream:
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    result = await stream.result()
    sys.stdout.write(f"\n  ({result.usage.cached_tokens} of {result.usage.prompt_tokens} prompt tokens reused)\n")
    return result


async def answer(client: AsyncClient, question: str) -> str:
    """One question through the loop: plan, call a tool, write. Instructions go at the tail, so the prefix is shared."""
    session = await client.create_session(messages=[{"role": "system", "content": "You run a greenhouse."}])
    try:
        await turn(session, "planner", f"Plan how to answer: {question}", max_tokens=64)
        call = await turn(session, "tool_caller", "Write the next tool call.", max_tokens=64)
        written = await turn(session, "writer", run_tool(call.text), role="tool", max_tokens=64)
        return written.text
    finally:
        await session.delete()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question")
    parser.add_argument("--gateway", default="127.0.0.1:7080")
    args = parser.parse_args()
    async with AsyncClient(args.gateway, tenant="greenhouse", timeout=120) as client:
        try:
            await answer(client, args.question)
        except IcarusError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    asyncio.run(main())
