"""What callers do with sessions and prompts: content in, a driven turn out, the history kept right."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from icarus.rpc.logs import bind_log_fields
from icarus.text.content import Content
from icarus.text.served_model import ServedModel
from icarus_gateway.sessions.history import History
from icarus_gateway.sessions.holders import SessionHolders
from icarus_gateway.sessions.prompt import check_length, open_answer, tokenise_more, tokenise_prompt
from icarus_gateway.sessions.store import Session, SessionPage, SessionStore
from icarus_gateway.turns.driver import TurnDriver
from icarus_gateway.turns.events import End, Sampling, TurnEvent, TurnRequest
from icarus_gateway.turns.runs import Play, TurnCall, TurnRun, TurnRuns


class Conversations:
    """Turns on sessions and without one. Input has been checked by itself, not yet against a history's length."""

    def __init__(self, model: ServedModel, store: SessionStore, driver: TurnDriver, runs: TurnRuns):
        self._model = model
        self._store = store
        self._holders = SessionHolders(store)
        self._driver = driver
        self._runs = runs
        self.num_forked = 0

    async def create(self, tenant: str, content: Content | None, ttl_seconds: float | None) -> Session:
        history = History() if content is None else await tokenise_more(self._model, History(), content)
        self._check_history(history)
        return await self._store.create(tenant, history, ttl_seconds)

    async def append(self, tenant: str, session_id: str, content: Content) -> tuple[int, int]:
        """(tokens appended, tokens in the history now). Raises ConflictError while a turn is under way."""
        await self._holders.settle(tenant, session_id)
        with self._holders.hold(tenant, session_id) as session:
            before = session.history.num_tokens
            history = await tokenise_more(self._model, session.history, content)
            self._check_history(history)
            await session.commit(history)
            return history.num_tokens - before, history.num_tokens

    async def fork(self, tenant: str, session_id: str, num_tokens: int | None) -> Session:
        """A session of its own, with the same ttl. A turn under way is not part of it."""
        session = self._store.get(tenant, session_id)
        history = session.history if num_tokens is None else session.history.first(num_tokens)
        fork = await self._store.create(tenant, history, session.ttl_seconds)
        self.num_forked += 1
        return fork

    def get(self, tenant: str, session_id: str) -> Session:
        return self._store.get(tenant, session_id)

    def list(self, tenant: str, after: int, limit: int) -> SessionPage:
        return self._store.list(tenant, after, limit)

    async def delete(self, tenant: str, session_id: str) -> None:
        await self._holders.settle(tenant, session_id)
        await self._store.delete(tenant, session_id)

    def generate_turn(
        self, call: TurnCall, session_id: str, model: str, content: Content | None, sampling: Sampling
    ) -> AsyncGenerator[TurnEvent]:
        """The history grows just before the turn's End is yielded; otherwise it stays as it was.

        With it the file, if there is one, takes the turn itself: its caller may come back after a restart.
        """
        return self._watch(
            call, session_id, lambda run: self._turn_of_session(run, call, session_id, model, content, sampling)
        )

    def generate(self, call: TurnCall, model: str, content: Content, sampling: Sampling) -> AsyncGenerator[TurnEvent]:
        return self._watch(call, "", lambda run: self._turn(run, call, model, content, sampling))

    async def cancel(self, tenant: str, turn_id: str) -> End | None:
        """Ends a turn, if it is under way, however many listen. The End of one that had finished before."""
        return await self._runs.cancel(tenant, turn_id)

    async def _watch(self, call: TurnCall, session_id: str, play: Play) -> AsyncGenerator[TurnEvent]:
        bind_log_fields(turn=call.turn_id, session=session_id)
        run = await self._runs.find_or_start(call, play)
        async with aclosing(run.watch(call.resume_from, call.resumable)) as events:
            async for event in events:
                yield event

    async def _turn_of_session(
        self, run: TurnRun, call: TurnCall, session_id: str, model: str, content: Content | None, sampling: Sampling
    ) -> End:
        await self._holders.settle(call.tenant, session_id)
        with self._holders.hold(call.tenant, session_id) as session:
            history = session.history
            if content is not None:
                history = await tokenise_more(self._model, history, content)
            history = open_answer(self._model, history)
            self._check_turn(history.num_tokens, sampling)
            prompt = history.token_ids
            request = TurnRequest(
                call.tenant,
                call.turn_id,
                model,
                prompt,
                sampling,
                session_id=session_id,
                after=history.mark,
                names=history.names,
                min_delta_tokens=call.min_delta_tokens,
            )
            end = await self._driver.run(request, run.emit)
            turn = self._runs.finished(call.key, (*run.deltas, end))
            await session.commit(history.answered(run.token_ids, end.mark, end.names), turn)
            return end

    async def _turn(self, run: TurnRun, call: TurnCall, model: str, content: Content, sampling: Sampling) -> End:
        prompt = await tokenise_prompt(self._model, content)
        self._check_turn(len(prompt), sampling)
        request = TurnRequest(
            call.tenant, call.turn_id, model, prompt, sampling, min_delta_tokens=call.min_delta_tokens
        )
        return await self._driver.run(request, run.emit)

    def _check_turn(self, num_prompt_tokens: int, sampling: Sampling) -> None:
        check_length(num_prompt_tokens, sampling.params.max_tokens, self._model.context_length)

    def _check_history(self, history: History) -> None:
        """A history that leaves no room for a single answer token is of no use."""
        if history.num_tokens:
            check_length(history.num_tokens, 1, self._model.context_length)
