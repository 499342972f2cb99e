"""A model of a token a byte, as the gateway sees it, and chat templates for it."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from icarus.text.chat_template import ChatTemplate
from icarus.text.served_model import ServedModel
from icarus.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|head|>{{ message['role'] }}<|tail|>\n\n"
    "{{ message['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|tail|>\n\n{% endif %}"
)
SPECIAL = ("<|bos|>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|tail|>", "<|eot|>")


def make_tokenizer() -> Tokenizer:
    """A token a byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    raw.add_special_tokens(list(SPECIAL))
    return Tokenizer(raw)


def make_model(template: str | None = CHATML, context_length: int = 4096) -> ServedModel:
    tokenizer = make_tokenizer()
    im_end, eot = tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|eot|>")
    assert im_end is not None and eot is not None
    return ServedModel(
        name="base",
        vocab_size=256 + len(SPECIAL),
        context_length=context_length,
        eos_token_ids=(im_end, eot),
        tokenizer=tokenizer,
        template=ChatTemplate(template, {"bos_token": "<|bos|>"}) if template else None,
    )
