"""Writing files so that a reader sees the old file or the new one, never half of either, and one writer at a time."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
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


@contextlib.contextmanager
def making(path: Path) -> Iterator[None]:
    """For the block, be the only process that makes `path`; look in it whether another one has made it meanwhile.

    By a lock file beside it that goes with the process, however that ends, and is removed once `path` is there. Raises
    StoreError when the folder cannot be written.
    """
    from filelock import FileLock

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"Cannot write {path}: {reason}. Choose a folder that you may write to.") from error
    try:
        yield
    finally:
        lock.release()
        if path.exists():  # whoever waits for this file, or makes another one of its name, finds `path`
            Path(lock.lock_file).unlink(missing_ok=True)
