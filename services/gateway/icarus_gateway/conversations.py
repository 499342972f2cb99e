"""What callers do with sessions and prompts: content in, a driven turn out, the history kept right."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from icarus_gateway.content import Content
from icarus_gateway.prompt import append, open_answer, stateless_prompt
from icarus_gateway.served_model import ServedModel
from icarus_gateway.sessions import History, Session, SessionStore
from icarus_gateway.turn import TurnDriver
from icarus_gateway.turn_events import Delta, TurnEvent, TurnRequest
from icarus_gateway.validation import Sampling, check_length


class Conversations:
    """Turns on sessions and without one. Input has been checked by itself, not yet against a history's length."""

    def __init__(self, model: ServedModel, store: SessionStore, driver: TurnDriver):
        self._model = model
        self._store = store
        self._driver = driver

    def create(self, tenant: str, content: Content | None) -> Session:
        history = History() if content is None else append(self._model, History(), content)
        self._check_history(history)
        return self._store.create(tenant, history)

    def append(self, tenant: str, session_id: str, content: Content) -> tuple[int, int]:
        """(tokens appended, tokens in the history now). Raises ConflictError while a turn is under way."""
        with self._store.hold(tenant, session_id) as session:
            before = len(session.history.token_ids)
            history = append(self._model, session.history, content)
            self._check_history(history)
            session.commit(history)
            return len(history.token_ids) - before, len(history.token_ids)

    def get(self, tenant: str, session_id: str) -> Session:
        return self._store.get(tenant, session_id)

    def delete(self, tenant: str, session_id: str) -> None:
        self._store.delete(tenant, session_id)

    async def generate_turn(
        self, tenant: str, session_id: str, turn_id: str, model: str, content: Content | None, sampling: Sampling
    ) -> AsyncGenerator[TurnEvent]:
        """The history grows when the turn's End comes, just before it is yielded; otherwise it stays as it was."""
        with self._store.hold(tenant, session_id) as session:
            history = session.history if content is None else append(self._model, session.history, content)
            history = open_answer(self._model, history)
            self._check_turn(history.token_ids, sampling)
            request = TurnRequest(tenant, turn_id, model, history.token_ids, sampling, after=history.mark)
            output: list[int] = []
            async with aclosing(self._driver.run(request)) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        output += event.token_ids
                    else:
                        longer = history.extended(output)
                        session.commit(replace(longer, num_turns=history.num_turns + 1, mark=event.mark))
                    yield event

    async def generate(
        self, tenant: str, turn_id: str, model: str, content: Content, sampling: Sampling
    ) -> AsyncGenerator[TurnEvent]:
        prompt = stateless_prompt(self._model, content)
        self._check_turn(prompt, sampling)
        async with aclosing(self._driver.run(TurnRequest(tenant, turn_id, model, prompt, sampling))) as events:
            async for event in events:
                yield event

    def _check_turn(self, prompt: tuple[int, ...], sampling: Sampling) -> None:
        check_length(len(prompt), sampling.params.max_tokens, self._model.context_length)

    def _check_history(self, history: History) -> None:
        """A history that leaves no room for a single answer token is of no use."""
        if history.token_ids:
            check_length(len(history.token_ids), 1, self._model.context_length)
