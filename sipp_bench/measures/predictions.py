"""What a network predicts, and how much of that another one predicts too. Logits are (n, classes), labels (n,) int64.

The predicted class is that of the largest logit, the first one where several are largest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sipp_bench.errors import OptionError, PointsError, require_counts
from sipp_bench.measures.modes import eval_mode
from sipp_bench.network.points import call_model, model_device


def predict(model: nn.Module, images: Tensor, batch_size: int = 128) -> Tensor:
    """The logits of `images` (n, ...), in eval mode, on the CPU: (n, classes)."""
    if len(images) == 0:
        raise PointsError("There are no images to predict: give at least one.")
    require_counts(batch_size=batch_size)
    device = model_device(model)
    with eval_mode(model):
        return torch.cat([_logits(call_model(model, x.to(device))) for x in images.split(batch_size)])


def _logits(output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise PointsError(
            f"The network's output must be one tensor of logits (n, classes), not a {type(output).__name__}."
        )
    return output.cpu()


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 128) -> dict[str, float]:
    """`scores` of the network's logits for `images` (n, ...). Raises PointsError unless there is a label for each."""
    if len(images) != len(labels) or len(images) == 0:
        raise PointsError(
            f"evaluate needs as many labels as images and at least one, not {len(images)}, {len(labels)}."
        )
    return scores(predict(model, images, batch_size), labels.cpu(), batch_size)


def scores(logits: Tensor, labels: Tensor, batch_size: int = 128) -> dict[str, float]:
    """`accuracy`: the share of points whose largest logit is the label's; `loss`: mean cross-entropy in nats.

    A point with a NaN is wrong. The loss is summed in float64 over batches in order, so that one batch size gives one
    result. Raises PointsError unless labels are classes of the network, one for each point.
    """
    require_counts(batch_size=batch_size)
    check(logits, labels)
    parts = zip(logits.split(batch_size), labels.split(batch_size), strict=True)
    loss = sum(float(F.cross_entropy(x.double(), y.long(), reduction="sum")) for x, y in parts)
    return {"accuracy": top_k_accuracy(logits, labels, 1), "loss": loss / len(labels)}


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """The share of points whose label is among the k classes with the largest logits; 1 with k classes or fewer.

    Of equal logits the one of the earlier class counts as larger. A point with a NaN is wrong, whatever k is.
    """
    check(logits, labels)
    if k < 1:
        raise OptionError(f"k is a number of classes, at least 1, not {k}.")
    labels = labels.long()
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return _share((rank < k) & ~logits.isnan().any(1))


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each point, -log softmax(logits)[label], in nats: (n,) float64."""
    check(logits, labels)
    return F.cross_entropy(logits.double(), labels.long(), reduction="none")


def mean_loss(logits: Tensor, labels: Tensor) -> float:
    """The mean of `losses`."""
    return float(losses(logits, labels).mean())


def agreement(one: Tensor, other: Tensor) -> float:
    """The share of points for which two networks predict the same class, right or wrong. Two (n, classes) logits.

    Liebenwein et al. 2021, "Lost in Pruning" (arXiv:2103.03014), call it the share of matching predictions.
    """
    _check_pair(one, other)
    return _share(one.argmax(1) == other.argmax(1))


def softmax_distance(one: Tensor, other: Tensor) -> float:
    """The mean over points of ||softmax(one) - softmax(other)||_2, from 0 to sqrt(2). Two (n, classes) logits.

    The second measure of functional distance of Liebenwein et al. 2021 (arXiv:2103.03014).
    """
    _check_pair(one, other)
    return float((one.double().softmax(1) - other.double().softmax(1)).norm(dim=1).mean())


@dataclass(frozen=True, eq=False)
class Flips:
    """The points on which a pruned network predicts another class: their rows, and the classes, all (flips,) int64.

    Hooker et al. 2019, "What do compressed deep neural networks forget?" (arXiv:1911.05248), look at such points.
    """

    points: Tensor
    dense: Tensor
    pruned: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.points)

    def table(self) -> Tensor:
        """How often the dense network's class i became j: (classes, classes) int64, with 0 on the diagonal."""
        counts = torch.bincount(self.dense * self.classes + self.pruned, minlength=self.classes**2)
        return counts.reshape(self.classes, self.classes)


def flips(dense: Tensor, pruned: Tensor) -> Flips:
    """The points whose predicted class changed, and from what to what; there are n (1 - agreement) of them."""
    _check_pair(dense, pruned)
    before, after = dense.argmax(1), pruned.argmax(1)
    points = (before != after).nonzero().flatten()
    return Flips(points, before[points], after[points], dense.shape[1])


def with_twin(
    similarity: Callable[[Tensor, Tensor], float], pruned: Tensor, dense: Tensor, twin: Tensor
) -> dict[str, float]:
    """`similarity` of each pair of three networks' logits: `pruned_dense`; the controls `pruned_twin`, `dense_twin`.

    twin: a dense network trained like the first one, from another seed. A pruned network is similar to the dense one
    only as far as it is more so than to the twin, and than the two dense ones are to each other (the control of
    Liebenwein et al. 2021, arXiv:2103.03014). similarity: `agreement`, `softmax_distance` or any other such function.
    """
    return {
        "pruned_dense": similarity(pruned, dense),
        "pruned_twin": similarity(pruned, twin),
        "dense_twin": similarity(dense, twin),
    }


def check(logits: object, labels: Tensor) -> None:
    """Raise PointsError unless these are (n, classes) and (n,) for some n > 0, with a class for every label."""
    if not isinstance(logits, Tensor):
        raise PointsError(
            f"The network's output must be one tensor of logits (n, classes), not a {type(logits).__name__}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise PointsError(f"Labels are classes, whole numbers, not {labels.dtype}: convert them to int64.")
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.numel() == 0:
        raise PointsError(
            f"Logits (n, classes) and labels (n,) are needed, n > 0, not {tuple(logits.shape)}, {tuple(labels.shape)}."
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise PointsError(f"There are {logits.shape[1]} classes, but labels from {labels.min()} to {labels.max()}.")


def _check_pair(one: Tensor, other: Tensor) -> None:
    if one.ndim != 2 or one.shape != other.shape or one.numel() == 0:
        raise PointsError(
            f"Two networks' logits of the same points are needed, (n, classes), not {tuple(one.shape)} and "
            f"{tuple(other.shape)}."
        )


def _share(true: Tensor) -> float:
    return int(true.sum()) / len(true)
