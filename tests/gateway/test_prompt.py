import threading

import pytest
import tokenizers
from icarus_gateway.sessions.history import History
from icarus_gateway.sessions.prompt import (
    append,
    check_length,
    open_answer,
    stateless_prompt,
    tokenise_more,
    tokenise_prompt,
)

from icarus.errors import FailedPreconditionError, InvalidInputError
from icarus.text.chat_template import ChatMessage
from icarus.text.content import Messages, Text, Tokens

ASK = Messages((ChatMessage("user", "Hi?"),))
MORE = Messages((ChatMessage("user", "Why?"),))


def text_of(model, history):
    """With special tokens."""
    return model.tokenizer._raw.decode(list(history.token_ids), skip_special_tokens=False)


def answered(model, history, answer):
    return history.extended(model.tokenizer.encode(answer))


@pytest.mark.parametrize("answer", ["Yes.<|im_end|>", "Yes.", "Yes.<|im_end|>\n"])
def test_a_session_reads_like_the_whole_rendering(model, answer):
    """However the answer ended: by its end token, cut off, or past it."""
    history = open_answer(model, append(model, History(), ASK))
    history = append(model, answered(model, history, answer), MORE)
    history = open_answer(model, history)
    conversation = (*ASK.messages, ChatMessage("assistant", "Yes."), *MORE.messages)
    assert text_of(model, history) == model.template.full(conversation, generation_prompt=True)
    assert history.token_ids == stateless_prompt(model, Messages(conversation))


def test_earlier_tokens_stay_as_sampled(model):
    """Two tokens whose text encodes to other ids stay the two."""
    odd = model.tokenizer.encode("é")[:1] * 2
    history = open_answer(model, append(model, History(), ASK)).extended(odd)
    longer = append(model, history, MORE)
    assert longer.token_ids[: len(history.token_ids)] == history.token_ids


def test_text_and_tokens_are_verbatim(model):
    history = append(model, History(), Text("abc"))
    history = append(model, history, Tokens((1, 2)))
    assert history.token_ids == (*model.tokenizer.encode("abc"), 1, 2)
    assert open_answer(model, history) == history


def test_the_generation_prompt_comes_once_and_after_messages_only(model):
    history = append(model, History(), ASK)
    opened = open_answer(model, history)
    assert text_of(model, opened) == text_of(model, history) + "<|im_start|>assistant\n"
    assert open_answer(model, opened) == opened
    assert open_answer(model, append(model, history, Text("x"))).token_ids[-1] == model.tokenizer.encode("x")[0]


def test_an_answer_stays_open_over_text_until_messages_close_it(model):
    history = answered(model, open_answer(model, append(model, History(), ASK)), "Yes")
    history = append(model, history, Text(" and"))
    assert text_of(model, history).endswith("assistant\nYes and")
    history = append(model, append(model, history, MORE), MORE)
    more = "<|im_start|>user\nWhy?<|im_end|>\n"
    assert text_of(model, history).endswith("Yes and<|im_end|>\n" + more + more)


def test_a_fresh_text_gets_what_the_tokenizer_puts_before_it(model):
    raw = model.tokenizer._raw
    bos = model.tokenizer.id_of("<|bos|>")
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|bos|> $0", special_tokens=[("<|bos|>", bos)]
    )
    history = append(model, History(), Text("a"))
    assert history.token_ids[0] == bos
    assert bos not in append(model, history, Text("b")).token_ids[1:]
    assert append(model, History(), ASK).token_ids[0] != bos
    assert stateless_prompt(model, Text("a")) == history.token_ids


def test_no_template_and_a_template_without_deltas(new_model):
    with pytest.raises(FailedPreconditionError, match="no chat template"):
        append(new_model(template=None), History(), ASK)
    stubborn = new_model(template="{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}")
    with pytest.raises(FailedPreconditionError, match="does not work for sessions"):
        append(stubborn, History(), ASK)
    assert stateless_prompt(stubborn, ASK)
    assert append(stubborn, History(), Text("x")).token_ids


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_text_that_cannot_fit_is_refused_before_it_is_tokenised(new_model, monkeypatch, kind):
    model = new_model(context_length=8)
    most = 8 * model.tokenizer.longest_token
    monkeypatch.setattr(type(model.tokenizer), "encode", lambda *args, **kwargs: pytest.fail("it was tokenised"))
    text = "x" * (most + 1)
    content = Text(text) if kind == "text" else Messages((ChatMessage("user", text[:9]), ChatMessage("user", text[9:])))
    for call in (lambda: stateless_prompt(model, content), lambda: append(model, History(), content)):
        with pytest.raises(InvalidInputError, match=f"{most + 1} characters.* {most} at the very most"):
            call()


@pytest.mark.parametrize("content", [Text("x" * 20_000), Messages((ChatMessage("user", "<|im_end|>"),) * 300)])
async def test_long_content_is_tokenised_beside_the_event_loop(new_model, monkeypatch, content):
    """With control tokens in it too."""
    model = new_model(context_length=100_000)
    expected = stateless_prompt(model, content), append(model, History(), content)
    encode, threads = model.tokenizer.encode, set()

    def noted(*args):
        threads.add(threading.current_thread())
        return encode(*args)

    monkeypatch.setattr(model.tokenizer, "encode", noted)
    assert (await tokenise_prompt(model, content), await tokenise_more(model, History(), content)) == expected
    assert threads and threading.current_thread() not in threads
    threads.clear()
    assert await tokenise_prompt(model, Text("x")) == tuple(encode("x"))
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_a_token_that_the_model_does_not_have_is_refused(model, kind):
    model.tokenizer._raw.add_tokens(["<new>"])
    text, plain = "hi <new>", "hi"
    content, harmless = ((Text(t) if kind == "text" else Messages((ChatMessage("user", t),))) for t in (text, plain))
    begun = append(model, History(), harmless)
    for call in (lambda history: stateless_prompt(model, content), lambda history: append(model, history, content)):
        for history in (History(), begun):
            with pytest.raises(InvalidInputError, match=r"'<new>' with id 262.* its vocabulary is \[0, 262\)"):
                call(history)


def test_lengths():
    check_length(90, 10, 100)
    with pytest.raises(InvalidInputError, match=r"prompt of 90 tokens \+ max_tokens 11 = 101.*context of 100"):
        check_length(90, 11, 100)
    with pytest.raises(InvalidInputError, match="prompt is empty"):
        check_length(0, 1, 100)
