"""The workers: who is there, what they hold, and which of them gets a turn."""
