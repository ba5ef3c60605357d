"""Which output channels of a layer reach which input channels of others with no weight between them.

Found for any network by poisoning: NaN in some output channels of one layer runs on through activations, pooling,
batch-norm, flattening and sums, and is seen where it arrives. One pass has NaN in the channels whose number has bit b
set, another one in those that have it not: where NaN arrives in exactly one of the two for every bit, the bits spell
the only channel that feeds the place. Other layers give what they gave without NaN.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sipp_bench.network.point_sets import Inputs, Points, map_inputs
from sipp_bench.network.points import call_model, iterate_batches, model_device
from sipp_bench.network.tracing import Call, tracing

NOBODY, SEVERAL = -1, -2


@dataclass(frozen=True)
class Coupling:
    """The channels between layers. Layers are weight names; channels are counted over all groups.

    feeds: by (producer, consumer), for each input channel of the consumer the output channel of the producer that alone
    feeds it, NOBODY, or SEVERAL of them: int64. leaks: producers whose channels reach the network's output, or places
    that no layer reads, with the reason why they can't be removed.
    """

    feeds: Mapping[tuple[str, str], Tensor]
    leaks: Mapping[str, str]

    def removable(self, producer: str) -> dict[str, Tensor]:
        """By consumer, its feeding channels (see `feeds`), where the producer's channels can be removed; else empty.

        They can where each goes to input channels that nothing else feeds, and nowhere else.
        """
        mine = {consumer: fed for (source, consumer), fed in self.feeds.items() if source == producer}
        others = [(c, fed) for (source, c), fed in self.feeds.items() if source != producer and c in mine]
        mixed = any(bool((fed == SEVERAL).any()) for fed in mine.values())
        shared = any(bool(((fed != NOBODY) & (mine[c] != NOBODY)).any()) for c, fed in others)
        return {} if producer in self.leaks or mixed or shared else mine


def couple(model: nn.Module, points: Points) -> Coupling:
    """The coupling of a network's layers, from its first point; the network is in eval mode and stays as it is."""
    batch, _ = next(iterate_batches(points, 1, model_device(model), model))
    inputs = map_inputs(lambda tensor: tensor[:1], batch)
    clean, uses = _clean(model, inputs)
    feeds: dict[tuple[str, str], Tensor] = {}
    leaks: dict[str, str] = {}
    for producer, number in uses.items():
        if number > 1:
            leaks[producer] = "it is applied more than once"
    for producer in uses:
        if producer not in leaks:
            _poison(model, inputs, producer, clean, feeds, leaks)
    return Coupling(feeds, leaks)


def _clean(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], dict[str, int]]:
    """The outputs of all calls in order, and how often each weight is applied."""
    outputs: list[Tensor] = []
    uses: dict[str, int] = {}

    def note(call: Call, output: Tensor) -> None:
        outputs.append(output.detach().clone())
        uses[call.name] = uses.get(call.name, 0) + 1

    with torch.no_grad(), tracing(model, note):
        call_model(model, inputs)
    return outputs, uses


def _poison(
    model: nn.Module,
    inputs: Inputs,
    producer: str,
    clean: list[Tensor],
    feeds: dict[tuple[str, str], Tensor],
    leaks: dict[str, str],
) -> None:
    """Follow the channels of one producer: into `feeds`, and `leaks` where they go astray."""
    channels = len(dict(model.named_parameters())[producer])
    arrived: dict[str, list[Tensor]] = {}
    codes = _codes(channels, model_device(model))
    for place, marked in enumerate(codes):
        for consumer, seen in _pass(model, inputs, producer, clean, marked, leaks).items():
            nothing = torch.zeros_like(seen)
            rows = arrived.setdefault(consumer, [nothing] * len(codes))
            rows[place] = rows[place] | seen
    for consumer, rows in arrived.items():
        feeds[producer, consumer] = _decode(torch.stack(rows), channels)
    if not arrived and producer not in leaks:
        leaks[producer] = "no layer reads its channels"


def _pass(
    model: nn.Module, inputs: Inputs, producer: str, clean: list[Tensor], marked: Tensor, leaks: dict[str, str]
) -> dict[str, Tensor]:
    """One pass with NaN in the marked channels: by consumer, which of its input channels it reached."""
    arrived: dict[str, Tensor] = {}
    calls = iter(clean)

    def follow(call: Call, output: Tensor) -> Tensor:
        axis = -1 if call.geometry is None else 1
        seen = call.input.isnan().movedim(axis, 0).flatten(1).any(1)
        if bool(seen.any()):
            arrived[call.name] = arrived[call.name] | seen if call.name in arrived else seen
        given = next(calls).clone()
        if call.name == producer:
            given.movedim(axis, -1)[..., marked] = torch.nan
        return given

    with torch.no_grad(), tracing(model, follow):
        result = call_model(model, inputs)
    if any(bool(t.isnan().any()) for t in _tensors(result)):
        leaks[producer] = "its channels reach the network's output"
    return arrived


def _codes(channels: int, device: torch.device) -> Tensor:
    """(2 * bits, channels) bool: row b marks the channels with bit b set, row bits + b those without it."""
    bits = max(1, (channels - 1).bit_length())
    numbers = torch.arange(channels, device=device)
    marked = ((numbers[None] >> torch.arange(bits, device=device)[:, None]) & 1).bool()
    return torch.cat([marked, ~marked])


def _decode(seen: Tensor, channels: int) -> Tensor:
    """From (2 * bits, input channels), where NaN arrived, the channel that each input channel is fed by."""
    with_bit, without = seen.chunk(2)
    number = (with_bit.long() << torch.arange(len(with_bit), device=seen.device)[:, None]).sum(0)
    single = (with_bit ^ without).all(0) & (number < channels)
    return torch.where(single, number, torch.where(seen.any(0), SEVERAL, NOBODY))


def _tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, dict):
        result = list(result.values())
    return [t for part in result for t in _tensors(part)] if isinstance(result, list | tuple) else []
