"""icarus bench agents: N specialists over growing conversations, shared against private."""
