"""Training repeats bit for bit, and the cache gives back what was trained or says that it cannot."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sipp_bench.errors import CheckpointError, ModelError, OptionError, PointsError, StoreError
from sipp_bench.zoo import data, models, training
from sipp_bench.zoo.training import Recipe

SHORT = Recipe(epochs=2, batch_size=50, learning_rate=0.05)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def dropout_network() -> nn.Module:
    return nn.Sequential(models.build("lenet-300-100", (1, 8, 8), 20), nn.Dropout(0.5), nn.Linear(20, 10))


def accuracy(model: nn.Module, part: data.Part) -> float:
    with torch.no_grad():
        return float((model(part.images).argmax(1) == part.labels).float().mean())


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    return data.load("digits")


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"optimizer": "lion"},
        {"schedule": "step"},
        {"schedule": "steps"},
        {"milestones": (3,)},
        {"gamma": 0.0},
        {"warmup_epochs": -1},
        {"augment": "rotate"},
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="A recipe's"):
        Recipe(**({"epochs": 1, "batch_size": 1, "learning_rate": 0.1} | changes))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_learns(digits: data.DataSet, optimizer: Any) -> None:
    model = models.build("lenet-300-100", digits.input_shape)
    before = accuracy(model, digits.validation)
    rate = {"sgd": 0.05, "adam": 0.002}[optimizer]
    recipe = Recipe(epochs=5, batch_size=50, learning_rate=rate, optimizer=optimizer, schedule="constant")
    training.train(model, digits.train.images, digits.train.labels, recipe, seed=0)
    assert before < 0.3
    assert accuracy(model, digits.validation) > 0.85
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_repeats_bit_for_bit_and_leaves_the_global_generator_alone(digits: data.DataSet) -> None:
    results = []
    for seed, global_seed in ((0, 1), (0, 2), (3, 1)):
        torch.manual_seed(0)
        model = dropout_network()
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        training.train(model, digits.train.images, digits.train.labels, SHORT, seed)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(state(model))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


def test_networks_with_and_without_dropout_see_the_same_batches(digits: data.DataSet) -> None:
    batches: list[list[Tensor]] = []
    for model in (models.build("lenet-300-100", digits.input_shape), dropout_network()):
        seen: list[Tensor] = []
        model.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].clone()))
        training.train(model, digits.train.images[:120], digits.train.labels[:120], SHORT, seed=0)
        batches.append(seen)
    assert [len(batch) for batch in batches[0]] == [50, 50, 20] * 2
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    first, second = torch.cat(batches[0][:3]), torch.cat(batches[0][3:])
    assert not torch.equal(first, second)  # a fresh shuffle each epoch


def test_the_rate_follows_the_schedule(digits: data.DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def recorded(self: torch.optim.SGD, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    recipe = Recipe(epochs=2, batch_size=100, learning_rate=0.1)
    model = models.build("lenet-300-100", digits.input_shape)
    training.train(model, digits.train.images[:200], digits.train.labels[:200], recipe, seed=0)
    assert rates == pytest.approx([0.1, 0.05 + 0.05 / 2**0.5, 0.05, 0.05 - 0.05 / 2**0.5])


def test_after_step_runs_after_each_step_and_can_hold_weights_at_zero(digits: data.DataSet) -> None:
    model = models.build("lenet-300-100", digits.input_shape)
    weight = model.get_parameter("fc1.weight")
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.1
    steps = 0

    def hold() -> None:
        nonlocal steps
        steps += 1
        with torch.no_grad():
            weight.mul_(mask)

    training.train(model, digits.train.images[:120], digits.train.labels[:120], SHORT, 0, after_step=hold)
    assert steps == 2 * 3  # 120 images in batches of 50, twice
    assert int((weight != 0).sum()) == int(mask.sum())


def test_divergence_and_missing_images_are_refused(digits: data.DataSet) -> None:
    model = models.build("lenet-300-100", digits.input_shape)
    images, labels = digits.train.images, digits.train.labels
    with pytest.raises(PointsError, match="got 1078 and 5"):
        training.train(model, images, labels[:5], SHORT, 0)
    with pytest.raises(PointsError, match="got 0 and 0"):
        training.train(model, images[:0], labels[:0], SHORT, 0)
    with pytest.raises(ModelError, match="diverged"):
        training.train(model, images * torch.inf, labels, SHORT, 0)


def test_the_cache_gives_back_what_was_trained(digits: data.DataSet, tmp_path: Path) -> None:
    fresh = training.trained_model("lenet-300-100", digits, cache_dir=tmp_path, recipe=SHORT)
    again = training.trained_model("lenet-300-100", digits, cache_dir=tmp_path, recipe=SHORT)
    assert (fresh.cached, again.cached) == (False, True)
    assert fresh.seconds is not None
    assert again.seconds is None
    assert equal(state(fresh.model), state(again.model))
    assert (fresh.sha256, fresh.key, fresh.path) == (again.sha256, again.key, again.path)
    assert list(tmp_path.iterdir()) == [fresh.path]
    assert not fresh.model.training
    assert not again.model.training


def test_checkpoints_are_trained_on_one_thread_and_ignore_the_global_generator(
    digits: data.DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads_seen = []
    real_train = training.train

    def recorded(*args: Any, **options: Any) -> None:
        threads_seen.append(torch.get_num_threads())
        real_train(*args, **options)

    monkeypatch.setattr(training, "train", recorded)
    threads = torch.get_num_threads()
    contents = []
    try:
        for number in (2, 3):
            torch.set_num_threads(number)
            torch.manual_seed(number)
            cache = tmp_path / str(number)
            trained = training.trained_model("lenet-300-100", digits, cache_dir=cache, recipe=SHORT)
            assert torch.get_num_threads() == number
            contents.append(trained.path.read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert threads_seen == [1, 1]
    assert contents[0] == contents[1]


def test_everything_that_training_depends_on_is_in_the_key(digits: data.DataSet, tmp_path: Path) -> None:
    other_recipe = Recipe(epochs=1, batch_size=500, learning_rate=0.1)
    one = Recipe(epochs=1, batch_size=500, learning_rate=0.05)
    runs = [
        training.trained_model("lenet-300-100", dataset, seed, tmp_path, recipe=recipe)
        for dataset, seed, recipe in (
            (digits, 0, one),
            (digits, 1, one),
            (digits, 0, other_recipe),
            (data.load("digits", seed=1), 0, one),
        )
    ]
    assert len({run.key for run in runs}) == len({run.path for run in runs}) == 4
    assert not any(run.cached for run in runs)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_cache_entry_is_an_error_that_names_it(digits: data.DataSet, tmp_path: Path, damage: str) -> None:
    path = training.trained_model("lenet-300-100", digits, cache_dir=tmp_path, recipe=SHORT).path
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    changed = {"flip": content, "truncate": content[:1000], "empty": b""}[damage]
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="Delete that file") as caught:
        training.trained_model("lenet-300-100", digits, cache_dir=tmp_path, recipe=SHORT)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == bytes(changed)
    path.unlink()
    assert not training.trained_model("lenet-300-100", digits, cache_dir=tmp_path, recipe=SHORT).cached


def test_processes_that_train_the_same_at_once_agree(tmp_path: Path) -> None:
    # Programs of their own: a process spawned from a test can't import the test's module where pytest can.
    code = f"""
from sipp_bench.zoo import data, training
recipe = training.{SHORT!r}
print(training.trained_model("lenet-300-100", data.load("digits"), cache_dir={str(tmp_path)!r}, recipe=recipe).sha256)
"""
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    hashes = {process.communicate(timeout=240)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert len(hashes) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_networks_without_a_recipe_are_refused(digits: data.DataSet, tmp_path: Path) -> None:
    assert set(training.RECIPES) == set(training.PAPER_RECIPES) < set(models.list_models())
    with pytest.raises(OptionError, match="There is no network"):
        training.trained_model("resnet-21", digits, cache_dir=tmp_path)
    coloured = data.DataSet(
        "coloured",
        digits.classes,
        "",
        0,
        *(_coloured(part) for part in (digits.train, digits.points)),
        *(_coloured(part) for part in (digits.validation, digits.test)),
    )
    with pytest.raises(OptionError, match="no training recipe"):
        training.trained_model("torchvision:squeezenet1_1", coloured, cache_dir=tmp_path)


def _coloured(part: data.Part) -> data.Part:
    return data.Part(part.images.expand(-1, 3, -1, -1), part.labels, part.indices)


def test_an_unwritable_cache_is_refused(digits: data.DataSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="SIPP_BENCH_CACHE"):
        training.trained_model("lenet-300-100", digits, cache_dir=tmp_path / "file", recipe=SHORT)


def test_the_cache_folder_is_the_users_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("SIPP_BENCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert training.default_cache_dir() == tmp_path / ".cache" / "sipp-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert training.default_cache_dir() == tmp_path / "xdg" / "sipp-bench"
    monkeypatch.setenv("SIPP_BENCH_CACHE", str(tmp_path / "mine"))
    assert training.default_cache_dir() == tmp_path / "mine"


@pytest.mark.parametrize("augment", ["none", "shift-flip"])
@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_training_that_is_killed_goes_on_to_the_same_bits(
    digits: data.DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int, augment: Any
) -> None:
    recipe = Recipe(epochs=3, batch_size=50, learning_rate=0.05, optimizer="adam", augment=augment)
    images, labels, state_file = digits.train.images, digits.train.labels, tmp_path / "training.state"

    def fresh() -> nn.Module:
        with models.seeded(1):
            return dropout_network()

    whole = fresh()
    training.train(whole, images, labels, recipe, 0)
    steps = 0

    def kill() -> None:
        nonlocal steps
        steps += 1
        if steps == killed_after * 22 + 5:  # in the middle of the next epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(fresh(), images, labels, recipe, 0, after_step=kill, state=state_file)
    assert state_file.exists()
    resumed = fresh()
    steps = 0
    training.train(resumed, images, labels, recipe, 0, after_step=lambda: None, state=state_file)
    assert equal(state(whole), state(resumed))
    assert not state_file.exists()


def test_a_damaged_state_is_an_error_that_names_it(digits: data.DataSet, tmp_path: Path) -> None:
    file = tmp_path / "x.state"
    file.write_bytes(b"half of")
    with pytest.raises(CheckpointError, match=r"x\.state holds cannot go on.*Delete that file"):
        training.train(dropout_network(), digits.train.images, digits.train.labels, SHORT, 0, state=file)


def test_an_early_checkpoint_is_a_part_of_the_whole_training(digits: data.DataSet, tmp_path: Path) -> None:
    early = training.trained_model("lenet-300-100", digits, cache_dir=tmp_path, recipe=SHORT, last_epoch=1)
    start = training.trained_model("lenet-300-100", digits, cache_dir=tmp_path, recipe=SHORT, last_epoch=0)
    whole = training.trained_model("lenet-300-100", digits, cache_dir=tmp_path, recipe=SHORT)
    assert len({early.key, start.key, whole.key}) == 3
    assert equal(state(start.model), state(models.build("lenet-300-100", digits.input_shape)))
    # Plain gradient descent has no momentum that would begin anew.
    recipe = Recipe(epochs=2, batch_size=50, learning_rate=0.05, momentum=0.0)
    one, two = (models.build("lenet-300-100", digits.input_shape) for _ in range(2))
    images, labels = digits.train.images, digits.train.labels
    training.train(one, images, labels, recipe, 0)
    training.train(two, images, labels, recipe, 0, last_epoch=1)
    training.train(two, images, labels, recipe, 0, first_epoch=1)
    assert equal(state(one), state(two))
    with pytest.raises(OptionError, match="cannot run 1 to 3"):
        training.train(two, images, labels, recipe, 0, first_epoch=1, last_epoch=3)


def test_rates_of_steps_and_warmup() -> None:
    recipe = Recipe(6, 1, 1.0, schedule="steps", milestones=(2, 4), gamma=0.1, warmup_epochs=1)
    rates = [recipe.rate(step, 2) for step in range(12)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])
    assert training.recipe_for("resnet-20", "paper").rate(100 * 10, 10) == pytest.approx(0.01)


def test_checkpoints_of_older_recipes_keep_their_keys() -> None:
    assert set(training.RECIPES["lenet-5"].description()) == {
        *("epochs", "batch_size", "learning_rate", "optimizer", "momentum", "weight_decay", "schedule")
    }
    assert training.recipe_for("resnet-20", "paper").description()["milestones"] == [91, 136]


def test_augmentation_moves_and_mirrors_images_and_nothing_else() -> None:
    images = torch.zeros(400, 2, 8, 10)
    images[:, 0, 3, 4] = 1
    images[:, 1, 3, 5] = 2
    torch.manual_seed(0)
    moved = training._augmented(images, "shift")
    assert moved.shape == images.shape
    ones, twos = moved[:, 0].nonzero(), moved[:, 1].nonzero()
    assert len({tuple(place[1:].tolist()) for place in ones}) > 30
    seen = dict(zip(ones[:, 0].tolist(), ones[:, 1:].tolist(), strict=True))
    assert all(seen[i] == [y, x - 1] for i, y, x in twos.tolist() if i in seen)
    mirrored = training._augmented(images, "shift-flip")
    left = mirrored[:, 0].nonzero()
    right = {i: x for i, y, x in mirrored[:, 1].nonzero().tolist()}
    sides = [right[i] - x for i, y, x in left.tolist() if i in right]
    assert set(sides) == {-1, 1}
    assert 0.4 < sides.count(1) / len(sides) < 0.6
