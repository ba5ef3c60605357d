"""`python -m sipp_bench` is `sipp-bench`: what an interrupt does is settled before anything slow is imported."""

import os
import signal
import sys
from types import FrameType

_IMPORTING = "<frozen importlib._bootstrap>"
"""Where the frames of an import are said to be."""


def main() -> None:
    """Run the command line and exit with its code; interrupted at any moment, say so in one line and exit with 130."""
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        while frame is not None:
            if frame.f_code.co_filename == _IMPORTING:
                # Libraries swallow what is raised while they are imported. There is nothing to clear up that a kill
                # would not leave to the next run as well.
                os.write(2, b"\nStopped.\n")
                os._exit(130)
            frame = frame.f_back
        raise KeyboardInterrupt

    def unraisable(problem: "sys.UnraisableHookArgs") -> None:
        if isinstance(problem.exc_value, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # it came where Python must go on: again, at the next place
        else:
            sys.__unraisablehook__(problem)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = unraisable
    try:
        from sipp_bench.cli.commands import main as run_command

        run_command()
    except BaseException as error:  # an interrupt may come out as anything
        if not interrupts:
            raise
        if not (isinstance(error, SystemExit) and error.code == 130):  # then it is said already
            print("\nStopped.", file=sys.stderr)
    finally:
        # From here on there is nothing to stop but the end itself.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    sys.exit(130)


if __name__ == "__main__":
    main()
