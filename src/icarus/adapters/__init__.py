"""LoRA adapters: PEFT folders, what is loaded, and segments of a batch."""
