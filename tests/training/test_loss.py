"""The training loss is the oracle's, and computing less does not change it."""

import copy

import pytest
import torch
from oracle import base_logits, private_logits, shared_logits
from tiny import load_reference, tiny_adapter
from torch.nn import functional as F

from icarus.errors import ConfigError
from icarus.training.batches import collate
from icarus.training.examples import Example
from icarus.training.lora_model import add_lora, check_two_streams, load_base
from icarus.training.loss import answer_loss, checkpoint_layers, num_shared_tokens
from icarus.training.settings import DEFAULT_TARGETS
from icarus.types import AdapterMode

SHARED, PRIVATE = AdapterMode.SHARED, AdapterMode.PRIVATE
EXAMPLES = [
    Example(tuple(range(10, 10 + prompt)), tuple(range(100, 100 + answer)))
    for prompt, answer in ((7, 3), (1, 5), (20, 1), (12, 9))
]

SHARED_PREFIX = [
    Example(tuple(range(10, 15)) + tuple(range(40, 40 + prompt)), tuple(range(100, 100 + answer)))
    for prompt, answer in ((7, 3), (1, 5), (20, 1), (12, 9))
]
PREFIX_ALONE = [Example((10, 11, 12), (100, 101)), Example((10, 11, 12), (102,))]
"""Only the prompt's last token is a row: it is not shared."""


@pytest.fixture
def adapted(base, tmp_path):
    """A model with a random adapter of either mode, B not zero, ready for training."""

    def make(mode):
        from peft import PeftModel

        folder = tiny_adapter(tmp_path / mode, base, seed=3, targets=DEFAULT_TARGETS[mode])
        return PeftModel.from_pretrained(load_base(base, "float32", 64), str(folder), is_trainable=True)

    return make


def loss_of(model, mode, examples=EXAMPLES):
    batch = collate(examples)
    return answer_loss(model, mode)(batch.input_ids, batch.positions, batch.labels)


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def reference_loss(logits_of, examples=EXAMPLES):
    """Cross-entropy of the oracle's whole logits, example by example, without padding."""
    total = 0.0
    for example in examples:
        logits = logits_of([*example.prompt_ids, *example.answer_ids])
        rows = logits[len(example.prompt_ids) - 1 : -1]
        total += F.cross_entropy(rows, torch.tensor(example.answer_ids), reduction="sum").item()
    return total


@pytest.mark.parametrize("examples", [EXAMPLES, SHARED_PREFIX, PREFIX_ALONE])
@pytest.mark.parametrize(("mode", "logits"), [(SHARED, shared_logits), (PRIVATE, private_logits)])
def test_a_padded_batch_has_the_oracles_loss(adapted, mode, logits, examples):
    model = adapted(mode)
    expected = reference_loss(lambda ids: logits(model, ids), examples)
    assert loss_of(model, mode, examples).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("examples", "num_shared"), [(EXAMPLES, 0), (SHARED_PREFIX, 5), (PREFIX_ALONE, 2)])
def test_shared_tokens_end_where_examples_differ_or_rows_begin(examples, num_shared):
    batch = collate(examples)
    assert num_shared_tokens(batch.input_ids, batch.positions) == num_shared
    alone = collate(examples[:1])
    assert num_shared_tokens(alone.input_ids, alone.positions) == 0


@pytest.mark.parametrize("mode", [SHARED, PRIVATE])
def test_a_prefix_that_is_computed_once_changes_no_gradient(adapted, mode):
    model = adapted(mode)
    loss_of(model, mode, SHARED_PREFIX).backward()
    together = gradients(model)
    model.zero_grad()
    for example in SHARED_PREFIX:
        loss_of(model, mode, [example]).backward()
    apart = gradients(model)
    assert together.keys() == apart.keys() and together
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("examples", [EXAMPLES, SHARED_PREFIX])
def test_the_base_alone_has_its_own_loss(base, examples):
    model = load_reference(base)
    expected = reference_loss(lambda ids: base_logits(model, ids), examples)
    assert loss_of(load_base(base, "float32", 64), PRIVATE, examples).item() == pytest.approx(expected, rel=1e-5)


def test_the_two_ways_differ(adapted):
    model = adapted(SHARED)
    assert abs(loss_of(model, SHARED).item() - loss_of(model, PRIVATE).item()) > 0.1


@pytest.mark.parametrize("mode", [SHARED, PRIVATE])
def test_fresh_weights_leave_the_base_as_it_is(base, settings, mode):
    model = add_lora(load_base(base, "float32", 64), settings(mode="icarus" if mode is SHARED else "conventional"))
    reference = load_reference(base)
    assert loss_of(model, mode).item() == pytest.approx(
        reference_loss(lambda ids: base_logits(reference, ids)), rel=1e-5
    )


def test_gradients_are_those_of_running_the_decoder_over_the_whole_text(adapted):
    """The oracle's way, with gradients: no row is left out, and nothing is padded."""
    from oracle import FrozenCache
    from transformers.cache_utils import DynamicCache

    model = adapted(SHARED)
    loss_of(model, SHARED).backward()
    ours = gradients(model)
    model.zero_grad()
    for example in EXAMPLES:
        ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        encoder = DynamicCache()
        with torch.no_grad(), model.disable_adapter():
            model(input_ids=ids, past_key_values=encoder, use_cache=True)
        logits = model(input_ids=ids, past_key_values=FrozenCache(encoder), use_cache=True).logits[0]
        labels = torch.tensor(example.answer_ids)
        F.cross_entropy(logits[len(example.prompt_ids) - 1 : -1], labels, reduction="sum").backward()
    theirs = gradients(model)
    assert ours.keys() == theirs.keys() and len(ours) == 2 * 2 * 5
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("examples", [EXAMPLES, SHARED_PREFIX])
@pytest.mark.parametrize("mode", [SHARED, PRIVATE])
def test_checkpointed_layers_change_neither_loss_nor_gradients(adapted, mode, examples):
    plain, checkpointed = adapted(mode), adapted(mode)
    checkpoint_layers(checkpointed)
    losses = []
    for model in (plain, checkpointed):
        model.train()
        losses.append(loss_of(model, mode, examples))
        losses[-1].backward()
    assert torch.equal(*losses)
    expected, found = gradients(plain), gradients(checkpointed)
    assert expected.keys() == found.keys() and expected
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_transformers_own_checkpointing_trains_something_else_and_is_refused(adapted):
    model = adapted(SHARED).train()
    right = loss_of(model, SHARED).item()
    loss = answer_loss(model, SHARED)
    causal = model.get_base_model()
    causal.activation_checkpointing_enable()
    batch = collate([EXAMPLES[1]])
    with pytest.raises(ConfigError, match="drops the cache"):
        answer_loss(model, SHARED)
    causal.activation_checkpointing_disable()
    assert loss_of(model, SHARED).item() == right
    assert loss(batch.input_ids, batch.positions, batch.labels).isfinite()


def test_only_lora_weights_get_gradients_and_the_encoder_keeps_none(adapted):
    model = adapted(SHARED)
    before = copy.deepcopy({name: weight for name, weight in model.named_parameters() if "lora_" not in name})
    loss_of(model, SHARED).backward()
    assert all("lora_" in name for name in gradients(model))
    assert all(torch.equal(weight, dict(model.named_parameters())[name]) for name, weight in before.items())


def test_a_forward_that_does_more_than_ours_is_found(base, settings):
    model = add_lora(load_base(base, "float32", 64), settings())
    check_two_streams(model, EXAMPLES[0])
    causal = model.get_base_model()
    plain = causal.forward

    def scaled(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    causal.forward = scaled
    with pytest.raises(ConfigError, match="not supported yet"):
        check_two_streams(model, EXAMPLES[0])
