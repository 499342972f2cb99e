"""The base model as the gateway sees it: names and numbers, tokenizer, template. No weights."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from icarus.errors import ConfigError
from icarus.model.config import ModelConfig
from icarus.text.chat_template import ChatTemplate, InvalidTemplateError, load_chat_template
from icarus.text.chat_tokens import ChatTokens
from icarus.text.model_files import read_json, special_tokens
from icarus.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    name: str
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    """The tokenizer's own first."""
    tokenizer: Tokenizer
    template: ChatTemplate | None
    template_problem: str | None = None
    """Why there is no template although the model's folder has one."""

    @cached_property
    def chat(self) -> ChatTokens | None:
        """None for a model without a chat template."""
        return None if self.template is None else ChatTokens(self.template, self.tokenizer)


def load_served_model(folder: Path, name: str) -> ServedModel:
    """Raises ConfigError where the folder lacks something or the architecture is not supported."""
    config = ModelConfig.from_folder(folder)
    tokenizer = Tokenizer.from_folder(folder)
    template, problem = None, None
    try:
        template = load_chat_template(folder)
    except InvalidTemplateError as error:
        problem = str(error)
    return ServedModel(
        name=name,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        eos_token_ids=_eos_token_ids(folder, tokenizer),
        tokenizer=tokenizer,
        template=template,
        template_problem=problem,
    )


def _eos_token_ids(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Of the tokenizer's own `eos_token`, generation_config.json and config.json together."""
    eos = special_tokens(folder).get("eos_token")
    eos_id = tokenizer.id_of(eos) if eos else None
    found = [] if eos_id is None else [eos_id]
    for file in ("generation_config.json", "config.json"):
        entry = read_json(folder / file).get("eos_token_id")
        ids = entry if isinstance(entry, list) else [] if entry is None else [entry]
        if not all(isinstance(token_id, int) for token_id in ids):
            raise ConfigError(f"{folder / file}: eos_token_id is {entry!r}; it must be a token id or a list of them")
        found += ids
    return tuple(dict.fromkeys(found))
