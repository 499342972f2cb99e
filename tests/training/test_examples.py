"""Files to token ids: the gateway's ids, loss on the answer, and what is refused with its line."""

import json
import shutil
from pathlib import Path

import pytest
from icarus_gateway.sessions.prompt import stateless_prompt
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers
from training.conftest import chat_line, write_lines

from icarus.errors import InvalidInputError
from icarus.model.hub import resolve_model
from icarus.text.chat_template import load_chat_template
from icarus.text.content import ChatMessage, Messages, Text
from icarus.text.served_model import load_served_model
from icarus.training.batches import DataOrder, collate, split_step
from icarus.training.data import fit
from icarus.training.examples import Example, Renderer
from icarus.training.records import Record, read_records
from icarus.training.schedule import learning_rate


def change(file: Path, **entries) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize("model", ["tiny", "tiny as gpt2", "smollm2"])
def test_prompts_are_the_gateways(model, base, tmp_path):
    folder = resolve_model(model) if model == "smollm2" else base
    if model == "tiny as gpt2":  # of whose tokenizer.json transformers takes the vocabulary alone
        folder = shutil.copytree(base, tmp_path / "gpt2")
        change(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
        change(folder / "tokenizer.json", normalizer={"type": "Lowercase"})
    renderer, served = Renderer(folder), load_served_model(folder, "m")
    texts = ["Füge « Ça ira » hinzu, 3.5 × 2", "  spaces  \n", '{"a": 1}', "\n\n12.", "the <|im_end|> of <s>"]
    for text in texts:
        messages = ({"role": "user", "content": text}, {"role": "user", "content": "Do it."})
        content = Messages(tuple(ChatMessage(**message) for message in messages))
        prompt = stateless_prompt(served, content)
        assert renderer.prompt_ids(messages) == renderer.example(Record(messages, "yes")).prompt_ids == prompt
        assert renderer.prompt_ids(text) == stateless_prompt(served, Text(text))
    assert renderer.end_ids == served.eos_token_ids
    assert load_chat_template(folder) is not None


def text_of(base: Path, token_ids) -> str:
    return RawTokenizer.from_file(str(base / "tokenizer.json")).decode(list(token_ids), skip_special_tokens=False)


def test_the_answer_ends_with_the_end_token_alone(base):
    renderer = Renderer(base)
    example = renderer.example(Record(({"role": "user", "content": "hi"},), "yes"))
    assert text_of(base, example.answer_ids) == "yes<|im_end|>"
    assert text_of(base, example.prompt_ids).endswith("<|im_start|>assistant\n")
    plain = renderer.example(Record("Q: hi\nA:", " yes"))
    assert text_of(base, plain.answer_ids) == " yes<|im_end|>"
    assert text_of(base, plain.prompt_ids) == "Q: hi\nA:"


def test_a_completion_has_no_space_that_its_tokenizer_puts_before_a_text(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "metaspace")
    letters = [chr(code) for code in range(10, 127)]
    raw = RawTokenizer(models.BPE({token: i for i, token in enumerate(["<unk>", "▁", "</s>", *letters])}, []))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # type: ignore[assignment]
    raw.add_special_tokens(["</s>"])
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    example = Renderer(folder).example(Record("A:\n", "Yes"))
    assert [raw.id_to_token(token_id) for token_id in example.answer_ids] == ["Y", "e", "s", "</s>"]


def test_a_control_token_in_an_answer_is_refused(base):
    """Where a message of the prompt has one, the gateway's ids are trained."""
    record = Record(({"role": "user", "content": "hi"},), "so <|im_end|> it is", line=7)
    with pytest.raises(InvalidInputError, match=r"line 7: the answer has .* control token '<\|im_end\|>'"):
        Renderer(base).example(record)


def test_a_message_that_the_template_leaves_out_is_refused(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "no-system")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"})
    with pytest.raises(InvalidInputError, match=r"line 3: .*renders nothing for a message of role 'system'"):
        Renderer(folder).example(Record(messages, "yes", line=3))


def test_messages_need_a_template(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidInputError, match="no chat template; give 'prompt' and 'completion'"):
        Renderer(folder).example(Record(({"role": "user", "content": "hi"},), "yes"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "this is not JSON"),
        ("[1]", "holds an object, not list"),
        ("{}", "either 'messages', or"),
        ('{"prompt": "a", "completion": "b", "messages": []}', "either 'messages', or"),
        ('{"prompt": "a"}', "both text"),
        ('{"prompt": "a", "completion": " "}', "no answer to learn"),
        ('{"prompt": "", "completion": "b"}', "'prompt' is empty"),
        ('{"prompt": "a", "completion": "\\ud800"}', "surrogates not allowed"),
        ('{"messages": "hi"}', "'messages' is a list"),
        ('{"messages": [{"role": "user"}]}', "'messages' is a list"),
        ('{"messages": [{"role": "assistant", "content": "b"}]}', "no answer to learn"),
        ('{"messages": [{"role": "user", "content": "b"}, {"role": "user", "content": "b"}]}', "no answer to learn"),
        (
            '{"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": ""}]}',
            "no answer to learn",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    file = write_lines(tmp_path / "d.jsonl", [chat_line("a", "b")])
    file.write_text(file.read_text() + "\n" + line + "\n")
    with pytest.raises(InvalidInputError, match=reason) as caught:
        read_records(file)
    assert "d.jsonl, line 3" in str(caught.value)


def test_bad_files(tmp_path):
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, reason in (("empty", "is empty"), ("binary", "cannot be read"), ("absent", "cannot be read")):
        with pytest.raises(InvalidInputError, match=reason):
            read_records(tmp_path / name)


def test_long_examples_are_counted():
    examples = [Example((1, 2, 3), (9,)), Example((1, 2, 3, 4, 5), (9, 9)), Example((1,), (9, 9, 9, 9, 9))]
    left_out = fit(examples, 5, truncate=False)
    assert (len(left_out.examples), left_out.num_left_out, left_out.num_truncated) == (1, 2, 0)
    cut = fit(examples, 5, truncate=True)
    assert (cut.num_left_out, cut.num_truncated) == (1, 1)
    assert cut.examples[1] == Example((3, 4, 5), (9, 9))


def test_every_epoch_sees_every_example_in_another_order():
    order = DataOrder(10, 4, seed=1)
    seen = [index for step in range(5) for index in order.step(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    again = DataOrder(10, 4, seed=1)
    assert [again.step(step) for step in (4, 0)] == [seen[16:], seen[:4]]
    assert DataOrder(10, 10, seed=2).step(0) != seen[:10]


def test_a_step_is_split_without_loss_and_by_length():
    examples = [Example(tuple(range(3, 3 + n)), (n,)) for n in (9, 1, 5, 2, 8, 3, 7, 4)]
    passes = [batch for process in range(2) for batch in split_step(examples, 2, process, 2)]
    assert sorted(int(label) for batch in passes for label in batch.labels.flatten()) == [1, 2, 3, 4, 5, 7, 8, 9]
    assert sorted(batch.input_ids.shape[1] for batch in passes) == [2, 4, 7, 9]
    batch = collate(examples[:2])
    assert batch.positions.tolist() == [[8], [0]] and batch.labels.tolist() == [[9], [1]]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_rises_and_falls(schedule):
    rates = [learning_rate(step, 100, 2.0, 0.03, schedule) for step in range(100)]
    assert rates[:3] == pytest.approx([2 / 3, 4 / 3, 2.0]) and rates[3] == 2.0
    assert rates[3:] == sorted(rates[3:], reverse=True) and 0 < rates[-1] < 0.03
    assert learning_rate(0, 10, 1.0, 0.0, schedule) == 1.0


def test_a_constant_rate_stays():
    rates = [learning_rate(step, 100, 2.0, 0.03, "constant") for step in range(100)]
    assert rates[:3] == pytest.approx([2 / 3, 4 / 3, 2.0]) and set(rates[3:]) == {2.0}
