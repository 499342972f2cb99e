"""What agent backends import: `Client` and `AsyncClient`, the same calls in two flavours. No torch."""

from icarus.client.aio import AsyncClient, AsyncSession
from icarus.client.connection_aio import AsyncTurnStream
from icarus.client.connection_sync import TurnStream
from icarus.client.messages import Sampling
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
from icarus.client.sync import Client, Session
from icarus.types import AdapterMode, FinishReason, TokenLogprob, TokenLogprobs, Usage

__all__ = [
    "AdapterMode",
    "Appended",
    "AsyncClient",
    "AsyncSession",
    "AsyncTurnStream",
    "Client",
    "Cluster",
    "Delta",
    "FinishReason",
    "LeftOutWorker",
    "Model",
    "ModelList",
    "RetryPolicy",
    "Route",
    "Sampling",
    "Session",
    "SessionState",
    "SessionSummary",
    "TokenLogprob",
    "TokenLogprobs",
    "TurnResult",
    "TurnStream",
    "Usage",
    "Worker",
]
