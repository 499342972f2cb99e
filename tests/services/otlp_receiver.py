"""A collector of spans, as OpenTelemetry's exporters see it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class OtlpReceiver(pb_grpc.TraceServiceServicer):
    """`spans` by (process, name), of one trace or of all. A process is a worker's id, or a service's name."""

    def __init__(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4))
        pb_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._received: list[tuple[str, Span]] = []
        self._lock = threading.Lock()

    def Export(self, request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext):
        with self._lock:
            for resource in request.resource_spans:
                names = {item.key: item.value.string_value for item in resource.resource.attributes}
                worker = names["service.name"] in ("icarus-prefill", "icarus-decode")
                process = names["service.instance.id" if worker else "service.name"]
                self._received += [(process, span) for scope in resource.scope_spans for span in scope.spans]
        return pb.ExportTraceServiceResponse()

    def spans(self, trace_id: bytes = b"") -> dict[tuple[str, str], Span]:
        with self._lock:
            return {
                (process, span.name): span
                for process, span in self._received
                if not trace_id or span.trace_id == trace_id
            }

    def wait_for(self, trace_id: bytes, expected: set[tuple[str, str]]) -> dict[tuple[str, str], Span]:
        """The spans of a trace once all that are expected have come."""
        deadline = time.monotonic() + 20
        while not expected <= (spans := self.spans(trace_id)).keys():
            assert time.monotonic() < deadline, f"{expected - spans.keys()} lack; there are {sorted(spans)}"
            time.sleep(0.05)
        return spans

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop(None)
