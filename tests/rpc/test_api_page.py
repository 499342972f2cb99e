"""The calls of docs/api.md are calls of this version."""

import json
import re
from pathlib import Path

import pytest
from google.protobuf import json_format, message_factory

from icarus.v1 import cluster_service_pb2, generation_service_pb2, model_service_pb2, session_service_pb2

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
CALLS = re.findall(r"-d '(\{.*\})' \\\n +\S+ icarus\.v1\.(\w+)/(\w+)", PAGE)
SERVICES = {
    name: service
    for module in (cluster_service_pb2, generation_service_pb2, model_service_pb2, session_service_pb2)
    for name, service in module.DESCRIPTOR.services_by_name.items()
}


@pytest.mark.parametrize(("data", "service", "method"), CALLS)
def test_a_call_is_understood(data, service, method):
    request = message_factory.GetMessageClass(SERVICES[service].methods_by_name[method].input_type)()
    json_format.ParseDict(json.loads(data), request)


def test_every_service_is_named():
    assert len(CALLS) == 3
    assert set(re.findall(r"^\| `(\w+Service)`", PAGE, re.MULTILINE)) == SERVICES.keys()
