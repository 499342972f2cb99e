from functools import partial

import pytest

from icarus.errors import ConfigError, FailedPreconditionError, InvalidInputError
from icarus.text.chat_template import ChatMessage, ChatTemplate, InvalidTemplateError, load_chat_template

TOKENS = {"bos_token": "<|bos|>"}
SYSTEM = ChatMessage("system", "Be kind.")
ASK, ANSWER, MORE = ChatMessage("user", "Hi?"), ChatMessage("assistant", "Yes."), ChatMessage("user", "Why?")


def added(template, messages):
    return template.split(messages)[1]


@pytest.mark.parametrize("name", ["chatml", "llama3"])
@pytest.mark.parametrize("start", [[ASK], [SYSTEM, ASK]])
def test_pieces_make_the_whole(templates, name, start):
    template = ChatTemplate(templates[name], TOKENS)
    assert template.delta_problem is None
    pieces = template.full(start) + template.generation_prompt + ANSWER.content + template.closing
    assert pieces == template.full([*start, ANSWER])
    pieces += added(template, [MORE]) + template.generation_prompt
    assert pieces == template.full([*start, ANSWER, MORE], generation_prompt=True)


def test_a_delta_has_no_beginning(templates):
    chatml, llama3 = ChatTemplate(templates["chatml"]), ChatTemplate(templates["llama3"], TOKENS)
    assert added(chatml, [MORE]) == "<|im_start|>user\nWhy?<|im_end|>\n"
    assert added(chatml, [SYSTEM]) == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert added(chatml, [ANSWER, MORE]) == added(chatml, [ANSWER]) + added(chatml, [MORE])
    assert chatml.closing == "<|im_end|>\n"
    assert "Be brief." in chatml.full([ASK]) and "Be brief." not in chatml.full([SYSTEM, ASK])
    assert added(llama3, [MORE]) == "<|head|>user<|tail|>\n\nWhy?<|eot|>"
    assert llama3.full([ASK]).startswith("<|bos|>") and llama3.closing == "<|eot|>"


REFUSED = {
    "numbers turns from the end": "{% for m in messages %}[{{ loop.revindex }}] {{ m.content }}\n{% endfor %}",
    "drops answers": "{% for m in messages if m.role != 'assistant' %}{{ m.content }}\n{% endfor %}",
    "shortens old answers": "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}{% else %}"
    "(thought) {{ m.content }}{% endif %}|{% endfor %}",
    "marks answers that it did not prompt": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "one question only": "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_a_template_without_deltas_is_refused_for_sessions(source):
    template = ChatTemplate(source)
    assert template.delta_problem
    for use in (lambda: added(template, [ASK]), lambda: template.closing, lambda: template.generation_prompt):
        with pytest.raises(FailedPreconditionError) as caught:
            use()
        assert template.delta_problem in str(caught.value)
    assert "Hi?" in template.full([ASK])


def test_a_template_that_insists_on_alternation_works():
    source = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    template = ChatTemplate(source)
    assert template.delta_problem is None
    assert added(template, [MORE]) == "<user>Why?</>"
    assert added(template, [ANSWER, MORE]) == "<assistant>Yes.</><user>Why?</>"
    with pytest.raises(InvalidInputError, match="roles must alternate"):
        added(template, [ASK, MORE])


KNOWN_ROLES = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}</>{% elif m.role == 'assistant' %}"
    "<assistant>{{ m.content | trim }}</>{% elif m.role == 'system' and loop.first %}<system>{{ m.content }}</>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_message_that_the_template_has_no_place_for_is_refused():
    template, result = ChatTemplate(KNOWN_ROLES), ChatMessage("tool", "12 C")
    assert template.delta_problem is None and template.system_problem is None
    for use in (template.full, template.first, partial(added, template)):
        with pytest.raises(InvalidInputError, match="renders nothing for a message of role 'tool'"):
            use([ASK, ANSWER, result])
        assert use([ASK, ChatMessage("tool", " \n"), ANSWER]).endswith("<user>Hi?</><assistant>Yes.</>")
    assert template.full([SYSTEM, ASK]) == "<system>Be kind.</><user>Hi?</>"
    with pytest.raises(InvalidInputError, match="role 'system' in this place"):
        added(template, [SYSTEM, ASK])


def test_what_transformers_templates_may_use():
    source = (
        "{% for m in messages %}<{{ m.role }}>{% generation %}{{ m.content }}{% endgeneration %}</>{% endfor %}"
        "{{ {'b': 'é', 'a': [1]} | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=true) }}"
        "{{ 'é' | tojson }}{{ {'a': 1} | tojson(indent=1) }}"
    )
    assert ChatTemplate(source).full([ASK]) == '<user>Hi?</>{"a":[1],"b":"\\u00e9"}"é"{\n "a": 1\n}'


def test_bad_templates():
    with pytest.raises(InvalidTemplateError, match="not valid"):
        ChatTemplate("{% for %}")
    with pytest.raises(InvalidInputError, match="unsafe"):
        ChatTemplate("{{ messages.__class__.__mro__ }}").full([ASK])


def test_where_templates_are(tmp_path, templates):
    assert load_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"chat_template": "{{ bos_token }}A{{ messages[0].content }}", "bos_token": {"content": "<s>"}}')
    template = load_chat_template(tmp_path)
    assert template is not None and template.full([ASK]) == "<s>AHi?"
    named = '[{"name": "x", "template": ""}, {"name": "default", "template": "B{{ messages[0].content }}"}]'
    config.write_text(f'{{"chat_template": {named}}}')
    template = load_chat_template(tmp_path)
    assert template is not None and template.full([ASK]) == "BHi?"
    (tmp_path / "chat_template.jinja").write_text(templates["chatml"])
    template = load_chat_template(tmp_path)
    assert template is not None and template.delta_problem is None
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InvalidTemplateError, match=r"chat_template\.jinja cannot be read"):
        load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config.write_text('{"chat_template": {"default": "A"}}')
    with pytest.raises(InvalidTemplateError, match="chat_template is a dict"):
        load_chat_template(tmp_path)
    config.write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json"):
        load_chat_template(tmp_path)
