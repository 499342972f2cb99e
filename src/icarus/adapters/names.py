"""What an adapter may be called: the one rule of gateways, which load them, and of workers, which start with some."""

from icarus.errors import AlreadyExistsError, InvalidInputError

_MAX_NAME_LENGTH = 128
"""Names are repeated in errors, which travel in HTTP headers of a few KiB."""


def check_name(name: str, base_model: str) -> None:
    """Raises InvalidInputError for a name that is empty or too long, AlreadyExistsError for the base model's."""
    if not name:
        raise InvalidInputError("name is ''; an adapter needs one")
    if len(name) > _MAX_NAME_LENGTH:
        raise InvalidInputError(f"name has {len(name)} characters; an adapter's has at most {_MAX_NAME_LENGTH}")
    if name == base_model:
        raise AlreadyExistsError(f"{name!r} is the base model's name; choose another for the adapter")
