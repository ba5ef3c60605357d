"""Several processes that do one job: what they tell each other, and that none waits for one that failed.

A thin layer over torch.distributed, which must be initialised (`torchrun` starts processes so that it can be).
"""

import contextlib
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sipp_bench import errors
from sipp_bench.errors import OptionError, RankError, SippBenchError

Group: TypeAlias = "dist.ProcessGroup | Literal['world'] | None"
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a group, as seen from one of them: this is number `rank` of `size`."""

    group: "dist.ProcessGroup | None" = None
    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, group: Group) -> "Ranks":
        """None: this process alone, whatever torch.distributed is used for besides. "world": all processes.

        Raises OptionError where torch.distributed is not initialised, or this process is not in the group.
        """
        if group is None:
            return cls()
        if isinstance(group, str) and group != "world":
            raise OptionError(f"group is None, 'world' or a torch.distributed process group, not {group!r}.")
        if not (dist.is_available() and dist.is_initialized()):
            raise OptionError(
                "group needs torch.distributed: start the program with torchrun and call "
                "torch.distributed.init_process_group() first, or leave group out."
            )
        members = dist.group.WORLD if isinstance(group, str) else group
        rank = dist.get_rank(members) if isinstance(members, dist.ProcessGroup) else -1
        if rank < 0:
            raise OptionError(f"Process {dist.get_rank()} is not in the given group: call this on its members only.")
        return cls(members, rank, dist.get_world_size(members))

    def together(self, work: Callable[[], T], tell: Callable[[T], Any]) -> tuple[T, list[Any]]:
        """The result of this rank's work, and of every rank, in order, what it tells about its own.

        An exception on one rank becomes one on all: its own there; elsewhere one of the same class where it is
        sipp-bench's own, else a RankError, that begins with the rank. A rank that has ended is a RankError as well.
        """
        if self.group is None:
            return work(), []
        failure: Exception | None = None
        message: tuple[str, Any]
        try:
            result = work()
            message = ("", tell(result))
        except Exception as error:
            failure = error
            message = (type(error).__name__, str(error))
        told = self._exchange(message)
        if failure is not None:
            raise failure
        for rank, (kind, content) in enumerate(told):
            if kind:
                raise _as_here(rank, kind, content)
        return result, [content for _, content in told]

    def maximum_(self, numbers: Tensor) -> Tensor:
        """The largest of all ranks, element by element, in place: exact, whatever the number of ranks."""
        return self._reduced_(numbers, dist.ReduceOp.MAX)

    def sum_(self, numbers: Tensor) -> Tensor:
        """The sum over all ranks, in place; for whole numbers, whose sums are exact."""
        return self._reduced_(numbers, dist.ReduceOp.SUM)

    def _reduced_(self, numbers: Tensor, operation: Any) -> Tensor:
        if self.group is None:
            return numbers
        moved = numbers.to(self._device(numbers.device)).contiguous()
        with _naming_the_dead():
            dist.all_reduce(moved, operation, self.group)
        return numbers if moved is numbers else numbers.copy_(moved)

    def _exchange(self, message: Any) -> list[Any]:
        """Each rank's message on every rank.

        Straight from each rank to each other one: in a ring, as gathering does it, a rank that is not next to one that
        has ended would go on waiting for as long as its neighbours live.
        """
        assert self.group is not None
        device = self._device(torch.device("cpu"))
        content = torch.frombuffer(bytearray(pickle.dumps(message)), dtype=torch.uint8).to(device)
        lengths = torch.empty(self.size, dtype=torch.int64, device=device)
        with _naming_the_dead():
            dist.all_to_all_single(lengths, torch.full_like(lengths, len(content)), group=self.group)
            sizes = [int(length) for length in lengths]
            received = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
            copies, lengths_out = content.repeat(self.size), [len(content)] * self.size
            dist.all_to_all_single(received, copies, sizes, lengths_out, group=self.group)
        return [pickle.loads(part.numpy().tobytes()) for part in received.cpu().split(sizes)]

    def _device(self, preferred: torch.device) -> torch.device:
        """`preferred`, or the one that the group's backend can send from: NCCL only knows GPUs, gloo is for CPUs."""
        known = dist.get_backend_config(self.group)
        if f"{preferred.type}:" in known and (preferred.type == "cpu" or "cuda:gloo" not in known):
            return preferred
        return torch.device("cpu") if "cpu:" in known else torch.device("cuda", torch.cuda.current_device())


def _as_here(rank: int, kind: str, message: str) -> SippBenchError:
    """What another rank raised."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, SippBenchError):
        return known(f"On rank {rank}: {message}")
    return RankError(f"Rank {rank} failed with {kind}: {message}")


@contextlib.contextmanager
def _naming_the_dead() -> Iterator[None]:
    """What torch.distributed raises when another process is gone, as a sentence."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". This is typically")[0]
        raise RankError(
            "Another rank has ended or no longer answers, so that its points are missing and nothing was measured: "
            f"see what that process said last, then start all of them again ({reason})."
        ) from error
