"""LoRA adapters: PEFT folders, their weights, and what is loaded."""
