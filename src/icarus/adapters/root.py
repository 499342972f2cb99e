"""Where adapters may be read from."""

from pathlib import Path

from icarus.adapters.metadata import FILE_NAME as METADATA_FILE_NAME
from icarus.adapters.peft_config import FILE_NAME as CONFIG_FILE_NAME
from icarus.adapters.peft_folder import FILE_NAME as WEIGHTS_FILE_NAME
from icarus.errors import InvalidInputError


def resolve_folder(path: str | Path, name: str, root: str) -> Path:
    """The real folder behind `path`, symlinks and `..` resolved; a relative path begins at `root` ("": anywhere).

    Raises InvalidInputError where it is no folder, or where it or a file of it that would be read is outside of `root`.
    """
    try:
        real_root = Path(root).resolve()
        folder = (real_root / path).resolve()
        for read in (folder, *(folder / file for file in (CONFIG_FILE_NAME, WEIGHTS_FILE_NAME, METADATA_FILE_NAME))):
            if root and not read.resolve().is_relative_to(real_root):
                raise InvalidInputError(
                    f"adapter {name!r}: {read} leads outside of this worker's adapter root; put the adapter under "
                    f"{real_root} ([worker] adapter_root)"
                )
        is_folder = folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of symlinks, a NUL, a name that is too long
        problem = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(f"adapter {name!r}: {str(path)[:200]!r} is no path to a folder: {problem}") from None
    if not is_folder:
        raise InvalidInputError(f"adapter {name!r}: {folder} is not a folder; give a folder that PEFT saved")
    return folder
