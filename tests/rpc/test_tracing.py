"""When tracing is on; that it is not there otherwise. What is traced: tests/services/test_tracing.py."""

import subprocess
import sys

import pytest

from icarus.errors import ConfigError
from icarus.rpc.tracing import configure_tracing

OFF = """
import sys
from icarus import tracing
from icarus.rpc.tracing import configure_tracing
for environ in ({}, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
                {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}):
    configure_tracing("gateway", "", environ)
with tracing.task_span("turn", "server"), tracing.span("fetch") as span:
    span.add_event("first_token")
    assert tracing.outgoing() == () and tracing.trace_id() == ""
tracing.join([("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01")])
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""


def test_where_nothing_asks_for_it_nothing_is_imported():
    done = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin'"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "protocol is 'http/protobu"),
    ],
)
def test_what_services_do_not_speak_is_named(environ, told):
    with pytest.raises(ConfigError, match=told):
        configure_tracing("gateway", "", environ)
