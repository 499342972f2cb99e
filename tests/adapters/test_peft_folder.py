"""PEFT folders: what peft writes is read to the same arithmetic; what cannot be served is refused by name."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from icarus.adapters.generate import SHARED_TARGETS, write_random_adapter
from icarus.adapters.lora import LoraWeights
from icarus.adapters.peft_folder import load_peft_folder
from icarus.errors import FailedPreconditionError, IcarusError, InvalidInputError
from icarus.types import AdapterMode

BASE = "ab" * 32
OTHER_BASE = "cd" * 32
SHARED, PRIVATE = AdapterMode.SHARED, AdapterMode.PRIVATE
QKV = ("q_proj", "k_proj", "v_proj")


def make_llama(hidden_size: int = 24) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden_size,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=4,
            vocab_size=64,
        )
    ).eval()


@dataclass(frozen=True)
class Shape:
    """A base's shape, read off the modules of a real Llama."""

    num_layers: int
    linear_shapes: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, model: LlamaForCausalLM) -> "Shape":
        linears = {path: module for path, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)}
        shapes = {path.split(".")[-1]: (linear.out_features, linear.in_features) for path, linear in linears.items()}
        return cls(model.config.num_hidden_layers, shapes)


SHAPE = Shape.of(make_llama())


def load(folder: Path, mode: AdapterMode | None = None, dtype: torch.dtype = torch.float32, **changes) -> LoraWeights:
    arguments = {"shapes": SHAPE.linear_shapes, "num_layers": SHAPE.num_layers, "base_digest": BASE, **changes}
    return load_peft_folder(folder, "writer", mode, dtype=dtype, device="cpu", **arguments)


def write(folder: Path, **changes) -> Path:
    return write_random_adapter(folder, SHAPE, **{"base_digest": BASE, "rank": 4, "seed": 1, **changes})


def edit_config(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, edit) -> None:
    """`edit` changes the dict of tensors in place."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def refused(folder: Path, error: type[IcarusError], *words: str, **arguments) -> str:
    with pytest.raises(error) as caught:
        load(folder, **arguments)
    message = str(caught.value)
    for word in ("writer", *words):
        assert word in message
    return message


def key(layer: int, module: str, half: str) -> str:
    parent = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"base_model.model.model.layers.{layer}.{parent}.{module}.lora_{half}.weight"


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
def test_weights_equal_what_peft_computes_from_its_own_folder(tmp_path, rslora):
    """Every module's delta, with ranks and alphas by pattern, against peft's own."""
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2, "up_proj": 7},
        alpha_pattern={r"layers\.\d\.mlp\..*": 3, "o_proj": 11},
        use_rslora=rslora,
        init_lora_weights=False,  # B is random too
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(make_llama(), config)
    model.save_pretrained(str(tmp_path))
    loaded = load(tmp_path, PRIVATE)
    layers = {
        (int(path.split(".")[4]), path.split(".")[-1]): module
        for path, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(loaded.modules) == set(layers) and len(layers) == 14
    for at, (a, b) in loaded.modules.items():
        torch.testing.assert_close(b @ a, layers[at].get_delta_weight("default"), atol=1e-6, rtol=1e-5)
    assert loaded.modules[1, "q_proj"][0].shape == (2, 24) and loaded.modules[0, "q_proj"][0].shape == (4, 24)
    assert (loaded.rank, loaded.mode, loaded.name) == (7, PRIVATE, "writer")


def test_plain_peft_loads_what_we_generate_and_agrees(tmp_path):
    folder = write(tmp_path / "a", b_scale=0.3)
    peft_model = PeftModel.from_pretrained(make_llama(), str(folder))
    loaded = load(folder)
    merged, base = peft_model.merge_and_unload(), make_llama()
    with torch.no_grad():
        for (layer, module), (a, b) in loaded.modules.items():
            block = base.model.layers[layer]
            getattr(block.self_attn if hasattr(block.self_attn, module) else block.mlp, module).weight += b @ a
        ids = torch.arange(12)[None]
        torch.testing.assert_close(base(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-5)
        assert (base(ids).logits - make_llama()(ids).logits).abs().max() > 1e-3


def test_zero_adapter_changes_nothing_and_has_all_modules(tmp_path):
    loaded = load(write(tmp_path, b_scale=0.0))
    assert set(loaded.modules) == {(layer, target) for layer in (0, 1) for target in SHARED_TARGETS}
    assert all(not b.any() and a.any() for a, b in loaded.modules.values())


def test_scaling_is_multiplied_in_float32_before_the_cast(tmp_path):
    folder = write(tmp_path, targets=("q_proj",))
    edit_config(folder, lora_alpha=3, r=4)
    stored = load_file(folder / "adapter_model.safetensors")[key(0, "q_proj", "B")]
    a, b = load(folder, dtype=torch.bfloat16).modules[0, "q_proj"]
    assert a.dtype == b.dtype == torch.bfloat16
    assert torch.equal(b, (stored * 0.75).bfloat16())
    edit_config(folder, use_rslora=True)
    assert torch.equal(load(folder).modules[0, "q_proj"][1], stored * (3 / math.sqrt(4)))


def test_a_subset_of_layers_that_the_configuration_names_is_fine(tmp_path):
    folder = write(tmp_path)
    edit_tensors(folder, lambda tensors: [tensors.pop(k) for k in list(tensors) if ".layers.0." in k])
    refused(folder, InvalidInputError, "layer 0 is missing", "10 missing")
    edit_config(folder, layers_to_transform=[1])
    assert {layer for layer, _ in load(folder).modules} == {1}


# --- the digest -------------------------------------------------------------------------------------------------------


def test_digest_names_the_arithmetic_and_nothing_else(tmp_path):
    folder = write(tmp_path / "a")
    digest = load(folder).digest
    assert len(digest) == 64
    assert load(write(tmp_path / "b")).digest == digest, "the same seed"
    edit_config(folder, lora_dropout=0.5, revision="x")
    assert load(folder, dtype=torch.bfloat16, mode=PRIVATE).digest == digest, "not the dtype, mode or training settings"
    changed = write(tmp_path / "c", seed=2), write(tmp_path / "d", targets=SHARED_TARGETS[:4])
    others = {load(other).digest for other in changed}
    edit_config(folder, lora_alpha=9)
    others.add(load(folder).digest)
    edit_tensors(folder, lambda tensors: tensors[key(1, "o_proj", "B")].view(-1)[-1].add_(1e-3))
    others.add(load(folder).digest)
    assert len(others) == 4 and digest not in others


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "asked", "served"),
    [
        (SHARED, None, SHARED),
        (SHARED, SHARED, SHARED),
        (SHARED, PRIVATE, PRIVATE),
        (PRIVATE, None, PRIVATE),
        (PRIVATE, PRIVATE, PRIVATE),
        (None, PRIVATE, PRIVATE),
    ],
)
def test_mode_served(tmp_path, stored, asked, served):
    assert load(write(tmp_path, mode=stored), asked).mode is served


@pytest.mark.parametrize(("stored", "asked"), [(None, None), (None, SHARED), (PRIVATE, SHARED)])
def test_mode_is_never_guessed(tmp_path, stored, asked):
    refused(write(tmp_path, mode=stored), FailedPreconditionError, "mode private", "train it again", mode=asked)


@pytest.mark.parametrize("asked", [None, SHARED, PRIVATE])
def test_adapter_of_another_base_is_refused_with_both_digests(tmp_path, asked):
    words = (BASE, OTHER_BASE, "other_base_adapters")
    refused(write(tmp_path, base_digest=OTHER_BASE), FailedPreconditionError, *words, mode=asked)


@pytest.mark.parametrize("asked", [None, SHARED, PRIVATE])
def test_adapter_of_another_base_that_the_operator_allows(tmp_path, asked):
    allowed = load(write(tmp_path / "theirs", base_digest=OTHER_BASE), asked, allow_other_base=True)
    assert allowed.mode is (asked or SHARED)
    assert allowed.digest == load(write(tmp_path / "ours")).digest


def test_other_base_says_nothing_about_shapes_or_modes(tmp_path):
    folder = write(tmp_path / "private", base_digest=OTHER_BASE, mode=PRIVATE)
    refused(folder, FailedPreconditionError, "private mode", mode=SHARED, allow_other_base=True)
    folder = write(tmp_path / "deep", base_digest=OTHER_BASE)
    refused(folder, InvalidInputError, "layer", num_layers=1, allow_other_base=True)


@pytest.mark.parametrize("targets", [QKV, ("k_proj",), ("o_proj", "v_proj")])
def test_key_and_value_weights_need_private_mode(tmp_path, targets):
    folder = write(tmp_path, targets=targets)
    message = refused(folder, InvalidInputError, "KV cache of its own", "mode private")
    assert all((target in message) == (target in ("k_proj", "v_proj")) for target in targets)
    assert {module for _, module in load(folder, PRIVATE).modules} == set(targets)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "cannot be read"),
        ("[]", "list"),
        ("{}", "format None"),
        ('{"format": 2, "mode": "shared", "base_digest": "' + BASE + '"}', "format 2"),
        ('{"format": 1, "mode": "both", "base_digest": "' + BASE + '"}', "'both'"),
        ('{"format": 1, "mode": "shared", "base_digest": "abc"}', "'abc'"),
        ('{"format": 1, "mode": ["shared"], "base_digest": "abc"}', "mode"),
        ("\x00\xff", "cannot be read"),
    ],
)
def test_bad_metadata_is_refused_even_when_private_is_asked(tmp_path, text, word):
    (write(tmp_path) / "icarus.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInputError, match=word) as caught:
        load(tmp_path, PRIVATE)
    assert "icarus.json" in str(caught.value)


# --- refused configurations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "biases"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "peft_type"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"a_setting_of_tomorrow": 1}, "a_setting_of_tomorrow"),
        ({"r": 0}, "r is 0"),
        ({"r": "8"}, "r is '8'"),
        ({"r": True}, "r is True"),
        ({"r": 257}, "from 1 to 256"),
        ({"rank_pattern": {"q_proj": 999}}, "999"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"alpha_pattern": {"(": 1}}, "'('"),
        ({"alpha_pattern": {"[z-a]": 1}}, "'[z-a]'"),
        ({"rank_pattern": {"(.*)*x": 1}}, "'(.*)*x', which is not supported"),
        ({"rank_pattern": {"(a|a)*x": 1}}, "not supported"),
        ({"rank_pattern": {r"(\w+\.?)+x": 1}}, "not supported"),
        ({"rank_pattern": {".*" * 4 + "x": 1}}, "more than 3 of"),
        ({"rank_pattern": {"(?:.|l)" * 20 + "x": 1}}, "more than 3 of"),
        ({"rank_pattern": {".{1,9}": 1}}, "not supported"),
        ({"rank_pattern": {"(?!x)q_proj": 1}}, "not supported"),
        ({"rank_pattern": {f"m{i}": 1 for i in range(1025)}}, "names 1025 modules"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "finite"),
        ({"lora_alpha": float("nan")}, "finite"),
        ({"lora_alpha": None}, "lora_alpha is None"),
    ],
)
def test_configuration_that_cannot_be_served(tmp_path, changes, word):
    folder = write(tmp_path)
    edit_config(folder, **changes)
    refused(folder, InvalidInputError, word, "adapter_config.json")


@pytest.mark.parametrize(
    "pattern",
    [
        "layers.1.self_attn.q_proj",
        "^model.layers.1.self_attn.q_proj",
        r"model\.layers\.\d+\.self_attn\.q_proj$",
        r".*\.self_attn\..*",
        "k_proj|q_proj",
        r"layers\.(0|1)\.self_attn\.(?:q|k)_proj",
        r"layers\.[0-9]\.self_attn\.q_\w+",
        "q.proj",
    ],
)
def test_keys_of_patterns_match_as_in_peft(tmp_path, pattern):
    folder = write(tmp_path, rank=2, targets=("q_proj", "o_proj"))
    edit_config(folder, alpha_pattern={pattern: 2 * 7})
    plain = load_file(folder / "adapter_model.safetensors")
    for (layer, module), (_, b) in load(folder).modules.items():
        path, stored = f"model.layers.{layer}.self_attn.{module}", plain[key(layer, module, "B")]
        matches = get_pattern_key([pattern], path) == pattern
        torch.testing.assert_close(b, stored * (7.0 if matches else 2.0))
        assert matches or (layer, module) != (1, "q_proj")


def test_a_name_that_the_base_does_not_have_is_skipped_as_peft_does(tmp_path):
    folder = write(tmp_path, targets=("q_proj",))
    edit_config(folder, target_modules=["q_proj", "c_attn", "query_key_value"])
    assert {module for _, module in load(folder).modules} == {"q_proj"}
    edit_config(folder, target_modules=["q_proj", "o_proj"])
    refused(folder, InvalidInputError, "lora_A of o_proj in layer 0 is missing")
    edit_config(folder, target_modules=["q_proj", "lm_head"])
    refused(folder, InvalidInputError, "lm_head", "is missing")


def test_rank_limit_is_an_argument(tmp_path):
    folder = write(tmp_path, rank=8)
    assert load(folder, max_rank=8).rank == 8
    refused(folder, InvalidInputError, "r is 8", "from 1 to 7", max_rank=7)


# --- refused tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embeddings"),
        ("base_model.model.lm_head.lora_A.weight", "lm_head"),
        ("base_model.model.lm_head.modules_to_save.weight", "lm_head"),
        ("base_model.model.model.norm.modules_to_save.weight", "modules_to_save"),
        ("base_model.model.model.layers.0.self_attn.q_proj.bias", "biases"),
        ("base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight", "qkv_proj"),
        ("base_model.model.model.layers.0.mlp.q_proj.lora_A.weight", "mlp.q_proj"),
        ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", "layers.00"),
        ("x" * 300, "no LoRA weight"),
    ],
)
def test_tensor_that_cannot_be_served(tmp_path, name, word):
    folder = write(tmp_path)
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(4, 24)}))
    refused(folder, InvalidInputError, word, name)


def test_layer_beyond_the_base(tmp_path):
    refused(write(tmp_path), InvalidInputError, "layer 1", "layers 0 to 0", num_layers=1)


@pytest.mark.parametrize(
    ("module", "half", "shape", "needed"),
    [
        ("q_proj", "A", (4, 23), [4, 24]),
        ("q_proj", "B", (25, 4), [24, 4]),
        ("down_proj", "A", (3, 40), [4, 40]),
        ("up_proj", "B", (40,), [40, 4]),
    ],
)
def test_wrong_shape_names_both(tmp_path, module, half, shape, needed):
    folder, name = write(tmp_path), key(1, module, half)
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    refused(folder, InvalidInputError, str(list(shape)), str(needed), name)


def test_adapter_made_for_a_wider_base(tmp_path):
    write_random_adapter(tmp_path, Shape.of(make_llama(hidden_size=48)), BASE, rank=4, seed=0)
    refused(tmp_path, InvalidInputError, "[48, 4]", "[24, 4]")


@pytest.mark.parametrize("half", ["A", "B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path, half, value):
    folder = write(tmp_path)
    edit_tensors(folder, lambda tensors: tensors[key(1, "up_proj", half)].view(-1)[-1].fill_(value))
    refused(folder, InvalidInputError, "NaN or infinite", f"lora_{half} of up_proj in layer 1")


def test_weights_beyond_the_compute_dtype(tmp_path):
    folder = write(tmp_path)
    edit_tensors(folder, lambda tensors: tensors[key(0, "q_proj", "B")].fill_(40_000.0))
    load(folder)
    refused(folder, InvalidInputError, "float16", dtype=torch.float16)


def test_integer_weights(tmp_path):
    folder = write(tmp_path)
    edit_tensors(folder, lambda tensors: tensors.update({key(0, "q_proj", "A"): torch.ones(4, 24, dtype=torch.int32)}))
    refused(folder, InvalidInputError, "I32", "F32")


@pytest.mark.parametrize("half", ["A", "B"])
def test_half_of_a_pair_is_missing(tmp_path, half):
    folder = write(tmp_path)
    edit_tensors(folder, lambda tensors: tensors.pop(key(1, "o_proj", half)))
    refused(folder, InvalidInputError, f"lora_{half} of o_proj in layer 1 is missing", "1 missing")


def test_target_without_tensors(tmp_path):
    folder = write(tmp_path, targets=("q_proj",))
    edit_config(folder, target_modules=["q_proj", "v_proj"])
    refused(folder, InvalidInputError, "v_proj in layer 0 is missing", "4 missing")


# --- broken files -----------------------------------------------------------------------------------------------------


def test_missing_folder_and_files(tmp_path):
    refused(tmp_path / "nowhere", InvalidInputError, "nowhere", "is not a folder")
    folder = write(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(folder, InvalidInputError, "adapter_model.safetensors does not exist")
    (folder / "adapter_config.json").unlink()
    refused(folder, InvalidInputError, "adapter_config.json does not exist")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 200_000, b" " * (1 << 20) + b"{}"])
def test_broken_configuration_file(tmp_path, content):
    (write(tmp_path) / "adapter_config.json").write_bytes(content)
    refused(tmp_path, InvalidInputError, "adapter_config.json")


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_truncated_weights(tmp_path, kept):
    path = write(tmp_path) / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    refused(tmp_path, InvalidInputError, "truncated or damaged")


def test_weights_file_whose_header_lies(tmp_path):
    path = write(tmp_path) / "adapter_model.safetensors"
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    path.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
    refused(tmp_path, InvalidInputError, "truncated or damaged")
    header = json.loads(data[8 : 8 + size])
    header[key(0, "q_proj", "A")]["data_offsets"][1] += 4
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    refused(tmp_path, InvalidInputError, "truncated or damaged")


def test_empty_weights(tmp_path):
    save_file({}, write(tmp_path) / "adapter_model.safetensors")
    refused(tmp_path, InvalidInputError, "no tensors")
