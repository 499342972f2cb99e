"""Text and token ids: the tokenizer, the chat template, prompts, stop strings."""
