"""A GGUF file to a plain model folder, dequantised by transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from icarus.errors import ConfigError


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes bfloat16 safetensors, config and tokenizer of `file` into `folder`. The same file gives the same bytes.

    Raises ConfigError where the model would not be the file's: transformers makes up what is missing and drops what it
    does not know.
    """
    reader = GGUFReader(file)
    _refuse_unread(file, reader)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        output_loading_info=True,
    )
    model, loading = loaded
    _require_whole(file, loading, len(reader.tensors), len(list(model.parameters())))
    model.save_pretrained(folder)
    _drop_quantization(folder / "config.json")
    for written in folder.iterdir():
        written.chmod(0o644)  # the weights come out readable by their owner alone


def _refuse_unread(file: Path, reader: GGUFReader) -> None:
    """What transformers passes over in silence."""
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.")}
    if (count := fields.get("split.count", 1)) > 1:
        raise ConfigError(f"{file} is one of {count} files of a model; merge them with llama-gguf-split --merge")
    scaling = [key for key in fields if ".rope.scal" in key]
    if any(key.endswith(".rope.scaling.type") and fields[key] == "none" for key in scaling):
        scaling = []
    if unread := scaling + [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]:
        raise ConfigError(
            f"{file} scales RoPE ({', '.join(unread)}), which is not read from a GGUF file; use the model's "
            "Hugging Face checkpoint"
        )


def _require_whole(file: Path, loading: Mapping[str, Any], num_stored: int, num_made: int) -> None:
    if made_up := sorted(loading["missing_keys"]):  # a misshapen one is an error of transformers' own
        raise ConfigError(
            f"{file} lacks {len(made_up)} weights of its model, {made_up[0]} for one; is it a whole GGUF file of a "
            "model?"
        )
    if num_stored != num_made:
        raise ConfigError(
            f"{file} has {num_stored} tensors, and the model that transformers makes of them {num_made}: biases or "
            "other weights would be lost; use the model's Hugging Face checkpoint"
        )


def _drop_quantization(file: Path) -> None:
    config = json.loads(file.read_text())
    config.pop("quantization_config", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
