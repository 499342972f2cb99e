"""Traces between services: set up by a process's entry, carried in calls' metadata (W3C traceparent)."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio

from icarus import tracing
from icarus.errors import ConfigError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def configure_tracing(service: str, instance: str, environ: Mapping[str, str]) -> None:
    """Sends this process's spans by OTLP where the standard variables say so. Otherwise imports nothing.

    Raises ConfigError where they ask for what we do not have, and ModuleNotFoundError without the extra `tracing`.
    """
    if not _is_wanted(environ):
        return
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {"service.name": environ.get("OTEL_SERVICE_NAME") or f"icarus-{service}"}
    if instance:
        attributes["service.instance.id"] = instance
    provider = TracerProvider(resource=Resource.create(attributes))  # sends what is left when the process exits
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _is_wanted(environ: Mapping[str, str]) -> bool:
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        raise ConfigError(f"OTEL_TRACES_EXPORTER is {exporter!r}; Icarus's services send 'otlp' or 'none'")
    if not exporter and not any(environ.get(name) for name in _ENDPOINTS):
        return False
    protocol = next((value for name in _PROTOCOLS if (value := environ.get(name))), "grpc")
    if protocol != "grpc":
        raise ConfigError(f"the OTLP protocol is {protocol!r}; Icarus's services speak 'grpc' (port 4317, not 4318)")
    return True


class TraceContextInterceptor(grpc.aio.ServerInterceptor):
    """Makes the caller's span the parent of the handler's spans. A call is handled in a task of its own."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        tracing.join(handler_call_details.invocation_metadata or ())
        return await continuation(handler_call_details)
