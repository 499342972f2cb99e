"""The `icarus` command."""
