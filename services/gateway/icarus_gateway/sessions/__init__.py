"""A history of token ids that agents share: how content makes it longer, and where it is kept."""
