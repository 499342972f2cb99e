"""An ordinary PEFT folder, with what the server and a reader want to know beside it."""

import json
import os
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from icarus.adapters.metadata import AdapterMetadata, write_metadata
from icarus.training.folder import ADAPTER_FILE

_CONFIG_FILE = "adapter_config.json"


def save_adapter(folder: Path, model: PeftModel, metadata: AdapterMetadata) -> None:
    """Writes PEFT's configuration, `icarus.json`, and last, all at once, the weights in bfloat16: they complete the
    folder."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" asks the hub whether they changed
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in weights.items()}
    config = model.peft_config["default"]
    config.inference_mode = True
    config.save_pretrained(str(folder))
    _sort_targets(folder / _CONFIG_FILE)
    write_metadata(folder, metadata)
    partial = folder / "partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # it comes out readable by its owner alone
    os.replace(partial, folder / ADAPTER_FILE)


def _sort_targets(file: Path) -> None:
    """PEFT writes a set; sorted, equal runs give equal files."""
    fields = json.loads(file.read_text())
    fields["target_modules"] = sorted(fields["target_modules"])
    file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
