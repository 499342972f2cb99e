"""The two-stream model: weights and the forward pass."""
