"""Writing files so that a reader sees the old file or the new one, never half of either."""

import contextlib
import os
import tempfile
from pathlib import Path

from sipp_bench.errors import StoreError


def write_atomically(path: Path | str, content: bytes | str) -> Path:
    """Write `content` to `path` through a temporary file in the same folder, flushed to disk, then renamed.

    Missing parent folders are made. Text is written as UTF-8. Returns the path.
    Raises StoreError, naming the path, when the folder cannot be written or the disk is full; nothing is left behind,
    after an interrupt neither.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner may read; results are for everyone the umask allows.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise StoreError(
            f"Cannot write {path}: {reason}. Choose a folder that you may write to and that has space left."
        ) from error
    return path
