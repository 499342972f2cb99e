"""`base_digest`: the identity of a model's weights, whatever their sharding and serving dtype."""

import hashlib
import json
import mmap
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from icarus.errors import ConfigError
from icarus.model.config_file import ConfigFile
from icarus.model.hub import cache_folder, write_atomically
from icarus.model.weight_files import weight_files
from icarus.model.weights import is_never_read

_VERSION = "icarus-base-v1"
_NO_CACHE = (OSError, RuntimeError)
"""What it is to have no cache folder, or one of somebody else's; RuntimeError where the user has no home."""


def base_digest(folder: str | Path) -> str:
    """SHA-256 over (name, dtype, shape, bytes) of the stored tensors that are read, sorted by name; hex.

    Remembered in the user's cache folder, where one can be used, by what tells the files from others and from their own
    earlier content.
    """
    folder = Path(folder).resolve()
    files, tied = weight_files(folder), ConfigFile.read(folder / "config.json").flag("tie_word_embeddings")
    key = hashlib.sha256(json.dumps([_VERSION, tied, [_identity(file) for file in files]]).encode()).hexdigest()
    with suppress(*_NO_CACHE):
        return _remembered(key).read_text()
    digest = _compute(files, tied)
    with suppress(*_NO_CACHE):
        write_atomically(_remembered(key), digest)
    return digest


def _remembered(key: str) -> Path:
    return cache_folder() / "digests" / key


def _identity(file: Path) -> list[str | int]:
    """The time of change too: whoever restores the one of modification cannot restore that."""
    stat = file.stat()
    return [str(file), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _compute(files: list[Path], tied: bool) -> str:
    with ThreadPoolExecutor() as threads:  # hashlib lets go of the GIL
        read = (tensor for file in files for tensor in _tensors(file) if not is_never_read(tensor[0], tied))
        lines = list(threads.map(_hash_tensor, read))
    return hashlib.sha256("\n".join([_VERSION, *sorted(lines)]).encode()).hexdigest()


def _hash_tensor(tensor: tuple[str, str, list[int], memoryview]) -> str:
    name, dtype, shape, data = tensor
    return json.dumps([name, dtype, shape, hashlib.sha256(data).hexdigest()])


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int], memoryview]]:
    """(name, dtype, shape, bytes) of each tensor: an 8-byte length, a JSON header of that length, the data."""
    try:
        with file.open("rb") as stream:
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        start = 8 + struct.unpack_from("<Q", data)[0]
        header = json.loads(bytes(data[8:start]))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                if start + end > len(data):
                    raise ValueError(f"tensor {name} ends beyond the file")
                yield name, entry["dtype"], entry["shape"], data[start + begin : start + end]
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ConfigError(f"{file} is not a whole safetensors file: {error}; fetch the model again") from None
