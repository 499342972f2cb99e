"""A GGUF file to a plain model folder, dequantised by transformers."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes bfloat16 safetensors, config and tokenizer of `file` into `folder`. The same file gives the same bytes."""
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    _drop_quantization(folder / "config.json")
    for written in folder.iterdir():
        written.chmod(0o644)  # the weights come out readable by their owner alone


def _drop_quantization(file: Path) -> None:
    config = json.loads(file.read_text())
    config.pop("quantization_config", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
