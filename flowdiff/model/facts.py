"""What the entries of a checkpoint or an exported model must be: types and ranges, in one place.

A file may come from anyone. Whatever is not as `model.checkpoint` writes it is refused here by name, before
anything is built of it or printed.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from torch import Tensor

from flowdiff.data.quantise import MAX_LEVELS
from flowdiff.errors import FlowdiffError, one_line, spell
from flowdiff.files import Unreadable
from flowdiff.model.reading import check_tensor
from flowdiff.options import Guidance, Pattern, Sigma, Steps, problem

FORMAT = 2  # what is written; 1 is read too, see `model.format_1`
VALUES = 1_000_000  # in a whole checkpoint, tensors counted as one
NUMBERS = 1 << 24  # in one sample
DEPTH, NODES, LENGTH = 30, 10_000, 4096  # of a configuration: nested, values in all, characters of one
LARGEST = 2**63 - 1
LETTERS = 1 << 20  # of all names of classes
LINE = 500  # characters of an error
GROUPS = ("denoiser", "dataset", "sampler", "schedule")  # that every model's configuration has
SAMPLING: dict[str, Any] = {
    "num_steps": Steps | None,
    "sigma_min": Sigma | None,
    "sigma_max": Sigma | None,
    "sigma_start": Sigma | None,
    "guidance_scale": Guidance | None,
}


Weights = Annotated[str, Pattern(r"ema|raw|ema:0\.\d{1,6}", "one of ema, raw, or ema:0.08, an average of that length")]
"""Of a model: the exponential average, those of the last step, an average that `model.averages` makes."""


def is_int(value: Any, low: int, high: int) -> bool:
    """Whether it is a whole number in [low, high]; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_text(value: Any, length: int = 256) -> bool:
    """Whether it is text of one line, without control characters."""
    return isinstance(value, str) and len(value) <= length and value.isprintable()


def _is_list(value: Any, each: Callable[[Any], bool], most: int) -> bool:
    return isinstance(value, list | tuple) and len(value) <= most and all(map(each, value))


def _is_shape(value: Any) -> bool:
    if not value or not _is_list(value, lambda n: is_int(n, 1, 65_536), 4):
        return False
    numbers = 1
    for size in value:
        numbers *= size
    return numbers <= NUMBERS


def _is_first_stage(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and set(value) == {"sha256", "levels"}
        and isinstance(value["sha256"], str)
        and re.fullmatch("[0-9a-f]{64}", value["sha256"]) is not None
        and is_int(value["levels"], 2, MAX_LEVELS)
    )


def _is_versions(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= 100 and all(map(is_text, [*value, *value.values()]))


def _is_config(value: Any) -> bool:
    """Whether it has what a model is built and sampled with; what that may be is `model.safe_construction`'s to say."""
    if not isinstance(value, dict) or not all(isinstance(value.get(group), dict) for group in GROUPS):
        return False
    return all(problem(value.get(key), allowed) is None for key, allowed in SAMPLING.items()) and all(
        isinstance(value.get(group), dict | None) for group in ("first_stage", "metrics", "autoencoder")
    )


FACTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "config": (_is_config, f"a configuration with {', '.join(GROUPS)}"),
    "source": (lambda v: isinstance(v, dict), "a configuration"),
    "overrides": (lambda v: _is_list(v, lambda w: isinstance(w, str) and len(w) <= LENGTH, 1000), "a list of words"),
    "shape": (_is_shape, f"1 to 4 sizes, {NUMBERS:,} numbers at most"),
    "num_classes": (lambda v: is_int(v, 0, 1_000_000), "a whole number from 0 to 1,000,000"),
    "levels": (lambda v: v is None or is_int(v, 2, MAX_LEVELS), f"null or a whole number from 2 to {MAX_LEVELS}"),
    "class_names": (
        lambda v: v is None or (_is_list(v, is_text, 1_000_000) and sum(map(len, v)) <= LETTERS),
        f"null or a list of names, {LETTERS:,} characters at most",
    ),
    "data": (is_text, "a name"),
    "first_stage": (_is_first_stage, "null, or sha256 and levels"),
    "versions": (_is_versions, "names and versions"),
    "git": (lambda v: v is None or is_text(v), "null or a commit"),
    "micro_step": (lambda v: is_int(v, 0, LARGEST), "a whole number from 0 up"),
    "step": (lambda v: is_int(v, 0, LARGEST), "a whole number from 0 up"),
    "weights": (lambda v: problem(v, Weights) is None, "ema, raw or ema:LENGTH"),
}
NEEDED = ("config", "shape", "num_classes", "levels", "data")


def _is_progress(value: Any) -> bool:
    """Of Lightning's loops: counts and switches."""
    return isinstance(value, dict) and all(
        isinstance(inner, dict | list | bool | None) or is_int(inner, 0, LARGEST) for _, inner in values(value)
    )


def _is_schedule(value: Any) -> bool:
    return isinstance(value, dict) and set(value) <= SCHEDULE and isinstance(value.get("last_epoch", 0), int)


SCHEDULE = {
    "base_lrs", "last_epoch", "_step_count", "_is_initial", "_get_lr_called_within_step", "_last_lr", "lr_lambdas",
    "verbose",
}  # fmt: skip
STATES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "optimizer_states": (
        lambda v: bool(v) and _is_list(v, lambda s: isinstance(s, dict) and {"state", "param_groups"} <= set(s), 10),
        "a list of an optimiser's states",
    ),
    "lr_schedulers": (lambda v: bool(v) and _is_list(v, _is_schedule, 10), "a list of a schedule's states"),
    "loops": (_is_progress, "the progress of a training"),
    "callbacks": (
        lambda v: isinstance(v, dict) and all(is_text(k) and isinstance(s, dict) for k, s in v.items()),
        "a mapping of callbacks' states",
    ),
}


def check_entry(entry: Any) -> dict[str, Any]:
    """The facts on a model, each of its type and in its range.

    Raises:
        FlowdiffError: names the one that isn't.
    """
    if not isinstance(entry, dict):
        raise Unreadable("its facts are no mapping")
    if not is_int(entry.get("format"), 1, FORMAT):
        theirs = spell(repr(entry.get("format"))[:40])
        raise Unreadable(f"its format is {theirs}, this version of flowdiff reads the formats 1 to {FORMAT}")
    for name in NEEDED:
        if name not in entry:
            raise Unreadable(f"damaged or foreign: it says nothing of its {name}")
    for name, (is_right, allowed) in FACTS.items():
        if name in entry and not is_right(entry[name]):
            raise Unreadable(f"damaged or foreign: its {name} is not {allowed}")
    names = entry.get("class_names")
    if names and len(names) != entry["num_classes"]:
        raise Unreadable(f"damaged or foreign: it has {entry['num_classes']} classes and {len(names)} class_names")
    for name in ("config", "source"):
        check_plain(f"its {name}", entry.get(name, {}))
    return entry


def check_plain(what: str, config: Any) -> None:
    """Raise unless a stored configuration is plain: bounded, of text keys, scalars, lists and mappings.

    Raises:
        Unreadable: says what it holds.
    """
    for count, (depth, value) in enumerate(values(config), start=1):
        if depth > DEPTH:
            raise Unreadable(f"{what} is nested more than {DEPTH} deep")
        if count > NODES:
            raise Unreadable(f"{what} has more than {NODES:,} values")
        if isinstance(value, dict):
            for key in value:
                if not is_text(key) or key.lower().startswith("hydra"):
                    raise Unreadable(f"{what} has the key {spell(repr(key)[:60])}, which is not followed")
        elif isinstance(value, str):
            if len(value) > LENGTH:
                raise Unreadable(f"{what} has a text of {len(value):,} characters, more than {LENGTH:,}")
        elif not isinstance(value, list | tuple | bool | int | float | None) or (
            isinstance(value, int) and abs(value) > LARGEST
        ):
            raise Unreadable(f"{what} holds a {type(value).__name__}")


def values(node: Any) -> Iterator[tuple[int, Any]]:
    """Every value inside nested dicts and lists with its depth, itself first; as long as one goes on asking."""
    stack = [(0, node)]
    while stack:
        depth, value = stack.pop()
        yield depth, value
        if isinstance(value, Mapping):
            stack.extend((depth + 1, inner) for inner in value.values())
        elif isinstance(value, list | tuple):
            stack.extend((depth + 1, inner) for inner in value)


def check_content(content: Any, size: int) -> dict[str, Any]:
    """What a checkpoint's file holds, each entry of its type.

    Args:
        content: as `model.reading.read_checkpoint` gives it.
        size: of the file in bytes.

    Raises:
        FlowdiffError: names what isn't.
    """
    if not isinstance(content, dict) or not isinstance(content.get("flowdiff"), dict):
        raise Unreadable("not a checkpoint of flowdiff (it has no entry 'flowdiff')")
    storages: dict[int, int] = {}
    for count, (depth, value) in enumerate(values(content)):
        if count > VALUES or depth > 2 * DEPTH:
            raise Unreadable(f"it is nested too deep, or has more than {VALUES:,} values")
        if isinstance(value, Tensor):
            check_tensor("one of its tensors", value)
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            if not all(isinstance(key, str | int) for key in value):
                raise Unreadable("damaged or foreign: it has keys that are neither text nor numbers")
        elif not isinstance(value, list | tuple | str | bool | int | float | None):
            raise Unreadable(f"damaged or foreign: it holds a {type(value).__name__}")
    if sum(storages.values()) > size:
        raise Unreadable("its tensors are larger than the file")
    check_entry(content["flowdiff"])
    if not is_int(content.get("global_step", 0), 0, LARGEST):
        raise Unreadable("damaged or foreign: its global_step is not a whole number from 0 up")
    for name, (is_right, allowed) in STATES.items():
        if name in content and not is_right(content[name]):
            raise Unreadable(f"damaged or foreign: its {name} is not {allowed}")
    for name in ("state_dict", "current_model_state"):
        state = content.get(name)
        if name in content and not isinstance(state, dict):
            raise Unreadable(f"damaged or foreign: its {name} is not a mapping of tensors")
        for key, tensor in (state or {}).items():
            if not is_text(key, 1000):
                raise Unreadable(f"damaged or foreign: its {name} has the key {spell(repr(key)[:60])}")
            check_tensor(key, tensor)
    return content


def about(path: Any, error: BaseException, key: str = "ckpt_path") -> FlowdiffError:
    """`ckpt_path=PATH: why`."""
    return FlowdiffError(f"{key}={spell(path)}: {one_line(error, LINE)}")
