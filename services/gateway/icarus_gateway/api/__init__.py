"""The gRPC services: messages are checked, turned into plain values, and answered."""
