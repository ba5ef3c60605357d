"""Every network of a report as a record: what it was made from, by which operation, and what was measured of it.

The records are `explorer/models.json`, in the shape that tools for comparing models read (base, operation, metrics),
and what the explorer shows. `explorer/models.schema.json` is the JSON Schema of that file.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

Number = float | None


class Operation(BaseModel):
    """What turned the base into the model."""

    name: Literal["train", "prune", "retrain"]
    parameters: dict[str, Any] = Field(description="seed; of pruning also method, its options, keep and the protocol")


class Layer(BaseModel):
    layer: str
    weights: int
    requested: int
    kept: int
    epsilon_mean: Number = Field(description="mean bound over the layer's blocks; null without a guarantee")
    epsilon_max: Number
    vacuous: Number = Field(description="share of blocks with a bound of 1 or more")


class Flips(BaseModel):
    """Where the predictions on the test part differ from the base's."""

    count: int
    pairs: list[tuple[int, int, int]] = Field(description="class of the base, class of the model, how many; most first")
    shown: list[int] = Field(description="the class predicted for each of the family's images, in their order")


class Model(BaseModel):
    id: str
    base: str | None = Field(description="id of the model that this one was made from; null for a trained one")
    operation: Operation
    family: str = Field(description="key of `families`: one network, data set and seed of one run")
    run: str
    network: str
    data: str
    seed: int
    method: str | None = Field(description="the label of the method in tables and figures")
    keep: Number = Field(description="the fraction of prunable weights that was asked for; 1 for a trained model")
    metrics: dict[str, Number] = Field(description="fractions, nats, seconds, ratios; null where not measured")
    class_accuracies: list[Number]
    class_loss_changes: list[Number] = Field(description="R(a) by class against the dense network, nats")
    layers: list[Layer]
    flips: Flips | None = Field(description="null for a trained model, and in runs that stored no predictions")


class Family(BaseModel):
    """What all models of one network, data set and seed of a run share."""

    classes: list[str]
    test_points: int = Field(description="how many predictions there are; 0 in runs that stored none")
    positions: list[int] = Field(description="the images shown, as positions in the test part")
    labels: list[int] = Field(description="their labels")
    dense: list[int] = Field(description="what the trained network predicts for them")
    sheet: str | None = Field(description="a PNG with them, `columns` a row, `tile` pixels wide and high each")
    tile: tuple[int, int]
    columns: int
    note: str = Field(description="why there are no images or no predictions; empty where there are")


class Models(BaseModel):
    """All models of a report."""

    format: Literal["sipp-bench models 1"] = "sipp-bench models 1"
    families: dict[str, Family]
    models: list[Model]
