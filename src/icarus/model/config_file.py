"""Reading a model's config.json: every failure names the file, the key and the value. No torch."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icarus.errors import ConfigError


@dataclass(frozen=True)
class ConfigFile:
    """An object of a JSON file. A key whose value is null counts as absent."""

    name: str
    """The file's path, and the part of it."""
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> "ConfigFile":
        """ConfigError where there is no such file or it holds no object."""
        try:
            value = json.loads(file.read_text())
        except FileNotFoundError:
            raise ConfigError(f"{file} does not exist; a model folder has config.json and safetensors files") from None
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{file} is not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{file} holds a {type(value).__name__}, not an object")
        return cls(str(file), value)

    def with_defaults(self, defaults: Mapping[str, Any]) -> "ConfigFile":
        """For keys that the file does not have at all: one that is null stays null."""
        return ConfigFile(self.name, {**defaults, **self.raw})

    def part(self, key: str) -> "ConfigFile":
        """The object at `key`; an empty one where there is none."""
        value = self.raw.get(key) or {}
        if not isinstance(value, dict):
            raise self.error(f"{key} is {value!r}; it must be an object")
        return ConfigFile(f"{self.name}: {key}", value)

    def get(self, key: str, default: Any = None) -> Any:
        value = self.raw.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"{key} is {value!r}; it must be a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
            raise self.error(f"{key} is {value!r}; it must be a positive number")
        return float(value)

    def names(self, key: str) -> list[str] | None:
        """A list of text; None where absent."""
        value = self.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise self.error(f"{key} is {value!r}; it must be a list of names")
        return value

    def flag(self, key: str) -> bool:
        """False where absent."""
        value = self.get(key, False)
        if not isinstance(value, bool):
            raise self.error(f"{key} is {value!r}; it must be true or false")
        return value

    def error(self, text: str) -> ConfigError:
        return ConfigError(f"{self.name}: {text}")
