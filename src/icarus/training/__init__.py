"""Specialists: LoRA fine-tuning of the logical decoder over the frozen encoder's KV, and their scores."""
