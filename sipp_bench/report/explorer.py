"""The files of the explorer: the models with what the page needs to show them, and the plotting library beside it."""

import json
from importlib import resources

from sipp_bench.report.beyond import Measure, measures_of
from sipp_bench.report.collect import Collected
from sipp_bench.report.lineage import gather_models
from sipp_bench.report.models import Models
from sipp_bench.report.style import method_styles

# What every run has comes first, the measures of its cells after them.
AXES = {
    "compression": Measure("Compression ratio, 1 / achieved keep"),
    "accuracy": Measure("Test accuracy (%)", 100),
    "loss": Measure("Test loss (nats)"),
    "validation_accuracy": Measure("Validation accuracy (%)", 100),
    "validation_loss": Measure("Validation loss (nats)"),
    "multiply_add_reduction": Measure("Multiply-add reduction (×)"),
    "keep": Measure("Keep, requested (%)", 100),
    "achieved_keep": Measure("Keep, achieved (%)", 100),
    "bound_median": Measure("Bound ε, median over blocks, worst layer"),
    "error_over_bound": Measure("Largest error / bound on S"),
    "vacuous_share": Measure("Vacuous bounds (%)", 100),
    "fit_seconds": Measure("Time to fit (s)"),
    "prune_seconds": Measure("Time to prune (s)"),
    "protocol_seconds": Measure("Time to prune and retrain (s)"),
    "evaluate_seconds": Measure("Time to evaluate (s)"),
    "check_seconds": Measure("Time to check bounds (s)"),
}
SYMBOLS = {
    # matplotlib's marker: plotly's
    **{"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left"},
    **{">": "triangle-right", "h": "hexagon", "p": "pentagon", "P": "cross", "8": "octagon", "*": "star"},
}


def explorer_files(report: Collected, images: bool) -> dict[str, bytes | str]:
    """File name -> content of all that lies in explorer/. images: whether test images may be shown."""
    from plotly.offline import get_plotlyjs  # slow to import

    models, sheets = gather_models(report, images)
    script = resources.files("sipp_bench.report") / "static" / "explorer.js"
    return {
        **sheets,
        "models.schema.json": json.dumps(Models.model_json_schema(), indent=1) + "\n",
        "models.json": models.model_dump_json(),
        "data.js": _data_script(report, models),
        "plotly.min.js": str(get_plotlyjs()),
        "explorer.js": script.read_text(encoding="utf-8"),
    }


def _data_script(report: Collected, models: Models) -> str:
    """The models as a script, since a page opened from disk cannot fetch; text in it never ends the script."""
    measures = AXES | {name: measure for name, measure in measures_of(report.done).items() if name not in AXES}
    known = {name for model in models.models for name, value in model.metrics.items() if value is not None} | {"keep"}
    content = models.model_dump() | {
        "axes": [
            {"key": name, "label": measure.title, "scale": measure.scale}
            for name, measure in measures.items()
            if name in known
        ],
        "styles": {
            label: {"colour": look.colour, "symbol": SYMBOLS[look.marker] + ("" if look.filled else "-open")}
            for label, look in method_styles(report.done).items()
        },
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return f"window.SIPP_BENCH = {text.replace('<', chr(92) + 'u003c')};\n"
