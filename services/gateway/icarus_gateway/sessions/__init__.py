"""Conversations: a history of token ids that agents share, and the turns that extend it."""
