"""Icarus: many LoRA specialists of one base model, served from one KV cache."""

__version__ = "0.1.0"
