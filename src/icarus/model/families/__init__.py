"""The supported families: one file each, and a line here."""

from icarus.model.families import llama, mistral, qwen2, qwen3

FAMILIES = {family.architecture: family for family in (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)}
