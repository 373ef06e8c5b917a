"""Compares runs: their last metrics side by side, what differs in their configs, and a picture of their losses."""

import dataclasses
import io
import unicodedata
from collections.abc import Mapping, Sequence

from lm import checkpoint, storage
from lm import config as config_lib
from lm.errors import InputError
from lm.tokenizers import tokenizer
from lm.training import loss_picture
from lm.training.metrics import read_metrics

Lines = Sequence[Mapping[str, float]]

_OTHERS = ("gradient_norm", "learning_rate", "skipped_steps", "padding_fraction")  # not results: left out

_OF_LOSSES = ("objective.name", "objective.mask_rate")  # settings that change what a loss counts


@dataclasses.dataclass(frozen=True)
class Runs:
    """Some runs.

    Attributes:
        names: their working directories.
        metrics: the lines of each run's metrics.jsonl.
        settings: setting -> its value in each run, of those that differ.
        one_tokenizer: whether all have the same tokenizer.
    """

    names: Sequence[str]
    metrics: Sequence[Lines]
    settings: Mapping[str, Sequence[object]]
    one_tokenizer: bool = True


def read(workdirs: Sequence[str]) -> Runs:
    """Reads the configs and metrics of runs.

    Raises:
        InputError: a working directory has no config or no metrics.
    """
    configs = [config_lib.leaves(checkpoint.read_config(storage.as_path(path))) for path in workdirs]
    metrics = [read_metrics(path) for path in workdirs]
    for path, lines in zip(workdirs, metrics, strict=True):
        if not lines:
            raise InputError(f"{path} has no line in metrics.jsonl yet; give runs that have taken some steps.")
    names = dict.fromkeys(name for config in configs for name in config)
    rows = {name: [config.get(name) for config in configs] for name in names}
    differ = {name: values for name, values in rows.items() if any(value != values[0] for value in values)}
    found = {tuple(storage.read_keys(path, tokenizer.FILES)) for path in workdirs}
    return Runs(workdirs, metrics, differ, len(found) == 1)


def table(runs: Runs) -> str:
    """Returns the last value of each metric and the differing settings, a column for each run.

    A line beneath them says where losses do not compare.
    """
    last = [{name: value for line in lines for name, value in line.items()} for lines in runs.metrics]
    steps = [{name: line["step"] for line in lines for name in line} for lines in runs.metrics]
    names = sorted({name for values in last for name in values} - {"step", *_OTHERS}, key=_order)
    rows = [["", *runs.names]]
    rows += [["step", *(f"{values['step']:,}" for values in last)]]
    rows += [[name, *(_last(name, *each) for each in zip(last, steps, strict=True))] for name in names]
    settings = [[name, *(str(value) or "''" for value in values)] for name, values in runs.settings.items()]
    rows += [[], ["settings that differ" if settings else "no setting differs"], *settings]
    widths = [max(_columns(row[column]) for row in rows if len(row) > column) for column in range(len(runs.names) + 1)]
    lines = [
        "  ".join(cell + " " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
    apart = [] if runs.one_tokenizer else ["tokenizer"]
    if apart := [*apart, *(name for name in _OF_LOSSES if name in runs.settings)]:
        lines += ["", f"losses do not compare between these runs: they differ in {' and '.join(apart)}"]
    return "\n".join(lines)


def _last(name: str, values: Mapping[str, float], steps: Mapping[str, float]) -> str:
    """Returns the last value of a metric, with its step if that is not the last of the run."""
    earlier = name in steps and steps[name] != steps["step"]
    return f"{_number(values.get(name))} (step {steps[name]:,})" if earlier else _number(values.get(name))


def _columns(text: str) -> int:
    """Returns the width of a text in a terminal, where East Asian characters take two columns."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def _order(name: str) -> tuple[bool, bool, str]:
    """Returns the sort key of a metric: losses and accuracies first, speed last, held-out beside training."""
    plain = name.removeprefix("eval/")
    return not name.endswith(("loss", "accuracy")), plain != "loss", f"{plain} {name}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def picture(runs: Runs) -> bytes:
    """Returns a PNG with one plot for each loss: the curve of each run, and its evaluations as points.

    Raises:
        InputError: no run has a finite loss.
    """
    from matplotlib.figure import Figure

    from lm import fonts

    labels, family = list(runs.names), None
    try:
        family = fonts.families(labels)
    except InputError:  # no font of this machine has them: the order of the table
        labels = [f"run {number}" for number in range(1, len(labels) + 1)]
    names = loss_picture.loss_names([line for lines in runs.metrics for line in lines])
    if not names:
        raise InputError(f"{', '.join(runs.names)} have no finite loss in metrics.jsonl; there is nothing to draw.")
    figure = Figure(figsize=(6.4 * len(names), 4.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, (run, lines) in enumerate(zip(labels, runs.metrics, strict=True)):
            color = f"C{number % 10}"
            if points := loss_picture.points(lines, name):
                steps, values = zip(*points, strict=True)
                axis.plot(steps, values, color=color, alpha=0.2, linewidth=1)
                axis.plot(steps, loss_picture.smooth(values), color=color, label=run)
            if evaluated := loss_picture.points(lines, f"eval/{name}"):
                axis.plot(*zip(*evaluated, strict=True), "o", color=color, markersize=4)
        axis.set(title=loss_picture.title(name), xlabel="step", ylabel="nats per prediction")
        axis.grid(alpha=0.3)
        axis.legend(
            title="lines: training, smoothed; points: held out", title_fontsize="small", prop={"family": family}
        )
    written = io.BytesIO()
    figure.savefig(written, dpi=120)
    return written.getvalue()
