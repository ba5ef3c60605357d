"""Files: written whole or not at all, by one writer at a time, inside the folder that is meant; read if they are files.

A writer's temporary file is `.NAME.0.tmp` (to 7) beside NAME, and locked while its writer lives: the kernel drops the
lock with the process, so that the next writer of NAME knows what a killed one left, and removes it.
"""

import contextlib
import errno
import fcntl
import io
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sipp_bench.errors import StoreError

_SLOTS = 8
"""How many writers may write the same file at a time."""
_TEMPORARY = re.compile(r"\..+\.(\d|[a-z0-9_]{8})\.tmp")
"""The second form is that of files of before, which were not locked."""
_WORTH_ASKING = 64 << 20
"""Bytes from which on a file is not read before it is known that they fit into memory."""
_KINDS = (
    (stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "FIFO"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)  # fmt: skip


def write_atomically(path: Path | str, content: bytes | str) -> Path:
    """Write `content` to `path` through a temporary file in the same folder, flushed to disk, then renamed.

    Missing parent folders are made. Text is written as UTF-8; what UTF-8 cannot say, such as a byte of a file's name
    that is no letter, as \\udcff, which JSON reads back. Returns the path.
    Raises StoreError, naming the path, when the folder cannot be written or the disk is full; nothing is left
    behind, after an interrupt neither, and what a killed writer of this file left behind is removed.
    """
    path = Path(path)
    data = printable(content).encode() if isinstance(content, str) else content
    try:
        refuse_irregular(path)  # to replace a device, or what /dev/stdout leads to, is nobody's wish
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = _temporary(path)
        with os.fdopen(descriptor, "wb") as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
                temporary.replace(path)
            except BaseException:
                _remove_own(temporary, descriptor)  # as long as it is locked: then the name may be another's
                raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"Cannot write {path}: {reason}. Choose a folder that you may write to and that has space left."
        ) from error
    return path


def printable(text: str) -> str:
    """Text that UTF-8 can say: of a path, what is no letter of it, as \\udcff; all other text as it is."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def sweep(folder: Path) -> None:
    """Remove what killed writers left in `folder`, whatever they wrote; what a living one writes stays."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if _TEMPORARY.fullmatch(entry.name):
                _remove_if_left(Path(entry.path))


def refuse_way_out(folder: Path, entry: Path) -> None:
    """Raise StoreError when `entry`, said to be in `folder`, is or passes a link that leads out of it."""
    if not entry.resolve().is_relative_to(folder.resolve()):
        raise StoreError(
            f"{entry} is a link that leads out of the folder {folder}. Put what it leads to there instead."
        )


def open_regular(path: Path | str) -> BinaryIO:
    """The file, open for reading. Raises OSError for what is no regular file: a FIFO or a device may never end."""
    try:
        # Without waiting: to open a FIFO would take until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device without a driver
            _require_regular(Path(path).stat().st_mode, path)
        raise
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path | str) -> bytes:
    """The bytes of a file. Raises OSError as `open_regular` does, and for more bytes than there is memory."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size >= _WORTH_ASKING:
            from sipp_bench.machine.memory import require_room  # with torch: not for the small files of light commands

            require_room(size)
        return file.read()


def load_tensors(content: bytes) -> Any:
    """What torch.save made `content` of, if that is tensors in dicts and lists: nothing in it is executed.

    Raises OSError for all else, in other words than torch's, which advise to let the file run its code, and for more
    than there is memory: a file may be packed.
    """
    import torch

    from sipp_bench.machine.memory import require_room

    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                require_room(sum(entry.file_size for entry in archive.infolist()))
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that are no such file, torch.load raises about anything
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise
        reason = "it is truncated, damaged, or nothing that torch.save wrote"
        if found := re.search(r"\bGLOBAL (\w[\w.]{0,99})", str(error)):
            reason = f"it holds {found[1]}, and more than tensors is refused because loading would run its code"
        raise OSError(errno.EINVAL, reason) from error


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
        refuse_irregular(Path(lock.lock_file))
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


def refuse_irregular(path: Path) -> None:
    """Raise OSError for something at `path` that is there, but neither a regular file nor a link to one."""
    with contextlib.suppress(FileNotFoundError):
        _require_regular(path.stat().st_mode, path)


def _require_regular(mode: int, path: Path | str) -> None:
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            code = errno.EISDIR if kind == "folder" else errno.EINVAL
            raise OSError(code, f"it is a {kind}, not a regular file", os.fspath(path))


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, open and locked, and its name."""
    for slot in range(_SLOTS):
        _remove_if_left(_slot(path, slot))
    for slot in range(_SLOTS):
        name = _slot(path, slot)
        try:
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            continue
        # Another writer may have taken the file for left behind before it was locked: then it is gone.
        if _lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)
    raise OSError(errno.EBUSY, f"{_SLOTS} others are writing it")


def _slot(path: Path, number: int) -> Path:
    return path.with_name(f".{path.name}.{number}.tmp")


def _remove_if_left(temporary: Path) -> None:
    """Remove a temporary file unless its writer lives; whatever cannot be looked at stays."""
    with contextlib.suppress(OSError):
        # A link at that name is nobody's temporary file, and is not followed.
        descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if _lock(descriptor) is True:
                _remove_own(temporary, descriptor)
        finally:
            os.close(descriptor)


def _remove_own(temporary: Path, descriptor: int) -> None:
    """Remove the file if it is still the one that was opened."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), temporary.lstat()):
            temporary.unlink()


def _lock(descriptor: int) -> bool | None:
    """Whether the lock on an open file is ours now; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
