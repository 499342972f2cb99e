"""What agent backends import: `Client` and `AsyncClient`, the same calls in two flavours. No torch."""

from icarus.client.aio import AsyncClient, AsyncSession, AsyncTurnStream
from icarus.client.results import (
    Appended,
    Cluster,
    Delta,
    LeftOutWorker,
    Model,
    ModelList,
    Route,
    SessionState,
    SessionSummary,
    TurnResult,
    Worker,
)
from icarus.client.retry import RetryPolicy
from icarus.client.sync import Client, Session, TurnStream
from icarus.types import TokenLogprob, TokenLogprobs

__all__ = [
    "Appended",
    "AsyncClient",
    "AsyncSession",
    "AsyncTurnStream",
    "Client",
    "Cluster",
    "Delta",
    "LeftOutWorker",
    "Model",
    "ModelList",
    "RetryPolicy",
    "Route",
    "Session",
    "SessionState",
    "SessionSummary",
    "TokenLogprob",
    "TokenLogprobs",
    "TurnResult",
    "TurnStream",
    "Worker",
]
