"""What interceptors have in common: something around whatever answers a method's calls."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import grpc
import grpc.aio

from icarus.rpc.parsing import RequestParser

Around = Callable[[Any], AbstractAsyncContextManager[None]]
"""Gives, for a call's context, what the call runs in."""


class SurroundingInterceptor(grpc.aio.ServerInterceptor, ABC):
    """Puts `around` around the calls of each method; with `parses` their requests are parsed in there too."""

    parses = False

    @abstractmethod
    def around(self, method: str) -> Around | None:
        """For a method such as "icarus.v1.GenerationService/Generate"; None leaves it as it is."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        around = self.around(str(handler_call_details.method).removeprefix("/"))
        return handler if around is None else _surround(handler, around, self.parses)


def _surround(handler: Any, around: Around, parse: bool) -> Any:
    """The handler with `around` entered for each of its calls. With `parse` its requests are parsed in there too.

    None (there is no such method) and a generated method that nobody implemented stay what they are.
    """
    if handler is None:
        return None
    kind = ("stream" if handler.request_streaming else "unary") + "_"
    kind += "stream" if handler.response_streaming else "unary"
    behavior = getattr(handler, kind)
    if not (inspect.isasyncgenfunction(behavior) or inspect.iscoroutinefunction(behavior)):
        return handler
    deserialize, read = handler.request_deserializer, _as_it_is
    if parse:
        parser = RequestParser(deserialize)
        deserialize, read = None, parser.parse_each if handler.request_streaming else parser.parse
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(_surrounded(behavior, around, read), deserialize, handler.response_serializer)


def _as_it_is(request: Any) -> Any:
    return request


def _surrounded(behavior: Callable[..., Any], around: Around, read: Callable[[Any], Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(behavior):

        async def generate(request: Any, context: Any) -> Any:
            async with around(context), aclosing(behavior(read(request), context)) as responses:
                async for response in responses:
                    yield response

        return generate

    async def call(request: Any, context: Any) -> Any:
        async with around(context):
            return await behavior(read(request), context)

    return call
