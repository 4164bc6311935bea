"""What TensorBoard shows of a run beside its curves and pictures: a row of HParams, text, the layout of Custom Scalars.

`begin` writes it before the first step, so that a run that dies is shown as well: the values in its row are the last
ones of its scalars. The columns are the swept keys and those of `MAIN`; of several runs TensorBoard takes the list of
columns from the first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

from flowdiff.errors import is_number
from flowdiff.model.configuration import leaves, to_yaml
from flowdiff.model.vocabulary import choice_that_builds, files_of
from flowdiff.runs.command_line import CommandLine
from flowdiff.runs.words import values_of
from flowdiff.training.callbacks.scalars import bucket_names

Value = str | float
VALIDATION = "val/"  # what validation measures is in a folder of its own
#: Columns of HParams: None, a configuration group, whose choice is shown; or the least and greatest sensible number.
MAIN: dict[str, tuple[float, float] | None] = {
    "dataset": None,
    "denoiser": None,
    "flow": None,
    "flow.n_flows": (1, 64),
    "activation": None,
    "conditioning": None,
    "precondition": None,
    "base": None,
    "loss": None,
    "augment": None,
    "optimizer": None,
    "sampler": None,
    "lr": (1e-6, 1),
    "dropout": (0, 1),
    "dataset.batch_size": (1, 8192),
    "trainer.max_steps": (1, 1_000_000),
    "seed": (0, 2**32 - 1),
}
#: Groups of the configuration that are parts of a denoiser: columns where this one has them.
PARTS = ("flow", "activation", "conditioning", "precondition", "base")


def missing_parts(config: Mapping[str, Any], model: str = "denoiser") -> set[str]:
    """The groups of parts, and the denoiser, that the model of a resolved configuration doesn't refer to."""
    referred = [value for _, value in leaves(config.get(model) or {})]
    return {group for group in {"denoiser", *PARTS} - {model} if config.get(group) not in referred}


def begin(
    writer: SummaryWriter,
    config: Mapping[str, Any],
    command_line: CommandLine,
    metrics: Sequence[str],
) -> None:
    """Write what is known before the first step.

    Args:
        writer: of the run.
        config: resolved, plain values.
        command_line: of the run.
        metrics: the scalars that are columns of HParams: those that this run will write, no others.
    """
    writer.add_text("config", f"```yaml\n{to_yaml(config)}```", 0)
    words, swept = command_line.words, command_line.swept
    writer.add_text("overrides", "\n".join(f"    {word}" for word in words) or "none", 0)
    writer.add_custom_scalars(layout(config))
    row = hparams(config, command_line)
    infos = [info(key, value, swept.get(key)) for key, value in row.items()]
    columns = [MetricInfo(name=MetricName(tag=tag, group=group_of(tag))) for tag in metrics]
    experiment = Experiment(hparam_infos=infos, metric_infos=columns)
    _write(writer, metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))
    start = SessionStartInfo()  # without a name of its group: then it is the run's, a row each
    for key, value in row.items():
        if isinstance(value, str):
            start.hparams[key].string_value = value
        else:
            start.hparams[key].number_value = value
    _write(writer, metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))
    writer.flush()


def group_of(tag: str) -> str:
    """The folder of a scalar below its run's: `val`, or none."""
    return VALIDATION.rstrip("/") if tag.startswith(VALIDATION) else ""


def end(writer: SummaryWriter, final: Mapping[str, float], step: int) -> None:
    """Write the final metrics as `final/<name>`, and that the run has come to its end."""
    for name, value in final.items():
        writer.add_scalar(f"final/{name}", value, step)
    info = SessionEndInfo(status=STATUS_SUCCESS)
    _write(writer, metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def layout(config: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """Custom Scalars: an overview, the loss in each bucket of σ, the optimisation. The same for every run, as far as
    the buckets are: TensorBoard merges the layouts of all runs."""
    buckets = ((config.get("callbacks") or {}).get("scalars") or {}).get("buckets", [])
    names = [f"train/loss_by_sigma/{name}" for name in bucket_names(buckets)] if buckets else []
    categories = {
        "overview": {
            "loss": ["train/loss", "val/loss"],
            "bits per dimension": ["val/bits_per_dim"],
            "denoising": ["train/denoising", "val/denoising"],
        },
        "loss by sigma": {f"sigma {name.rpartition('/')[2]}": [name] for name in names},
        "optimisation": {
            "learning rate": ["train/lr"],
            "norm of the gradient": ["train/grad_norm"],
            "images per second": ["train/images_per_second"],
        },
    }
    return {
        category: {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in charts.items()}
        for category, charts in categories.items()
        if charts
    }


def hparams(config: Mapping[str, Any], command_line: CommandLine) -> dict[str, Value]:
    """The row of a run: swept keys first, then `MAIN`. What the model doesn't have is left out (a linear flow's width).

    Args:
        config: resolved, plain values.
        command_line: says which keys are swept, what can't be read from `config` (experiment=…), and what the choices
            are called that led to it.
    """
    known, typed, swept = dict(leaves(config)), values_of(command_line.words), command_line.swept
    row: dict[str, Value] = {}
    missing = missing_parts(config)
    for key in dict.fromkeys([*swept, *MAIN]):
        group = key.partition(".")[0]
        if key not in swept and group in missing:
            continue
        value: Any = known.get(key)
        if is_number(value):
            row[key] = value
        elif isinstance(value, Mapping) and "_target_" in value:
            row[key] = choice_that_builds(key, str(value["_target_"]), command_line.choices.get(key))
        elif value is not None or key in swept:
            row[key] = typed.get(key, str(value))
    return row


def info(key: str, value: Value, values: Sequence[str] | None) -> HParamInfo:
    """A column: its values where they are known (those swept, a group's choices), else a range.

    Args:
        key: as on the command line.
        value: this run's.
        values: those of the sweep; None: the key isn't swept.
    """
    found = HParamInfo(name=key, differs=values is not None)
    bounds = MAIN.get(key)
    if isinstance(value, str):
        found.type = DATA_TYPE_STRING
        found.domain_discrete.extend(sorted({*(values or files_of(key)), value}))
    elif values:
        found.type = DATA_TYPE_FLOAT64
        found.domain_discrete.extend(sorted({*map(float, filter(_is_float, values)), float(value)}))
    else:
        found.type = DATA_TYPE_FLOAT64
        low, high = bounds or (value, value)
        found.domain_interval.min_value, found.domain_interval.max_value = min(low, value), max(high, value)
    return found


def _is_float(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _write(writer: SummaryWriter, tag: str, content: HParamsPluginData) -> None:
    described = metadata.create_summary_metadata(content)
    value = Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)
    writer._get_file_writer().add_summary(Summary(value=[value]), 0)
