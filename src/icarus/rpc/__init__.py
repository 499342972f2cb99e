"""The gRPC shell: servers, errors as statuses, messages as types."""
