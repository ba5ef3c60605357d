"""What tests read of run folders."""

from pathlib import Path


def results(folder: Path) -> dict[str, bytes]:
    """The files of a run's cells that have no time in them: the same in every run of a suite.

    Also of a run under way: a hidden file is one that is being written, and may be renamed before it can be read.
    """
    files = [file for file in folder.glob("cells/[!.]*") if not file.name.endswith(".timing.json")]
    return {file.name: file.read_bytes() for file in files}
