"""The engine: scheduler (policy, no tensors), runner (tensors, no policy), sampler and the step."""
