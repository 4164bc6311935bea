"""Samples in batches, each a function of its own seed and label.

Sample i draws every normal variate it needs from a generator seeded with seed_i, and the network always works
on tiles of the same number of rows (the last one filled up): the arithmetic of a row is then the same
whatever the batch size, because matrix kernels choose their order of summation by the number of rows. Hence

    x_i = sampler(D, noise(seed_i), sigmas, label_i)

does not depend on `batch_size` nor on how many samples are asked for, bit for bit on one machine. The idea
of one generator a sample is EDM's (Karras et al. 2022, https://github.com/NVlabs/edm,
`StackedRandomGenerator`).
"""

from collections.abc import Mapping
from typing import Any

from flowdiff.errors import ConfigError, FlowdiffError, at_least
from flowdiff.model import safe_construction
from flowdiff.samplers.batched import BatchedSampler

SETTINGS = ("num_steps", "sigma_min", "sigma_max", "sigma_start")
"""The sampling settings that a sampler's or a schedule's configuration may hold."""


def from_config(
    denoiser: Any,
    config: Mapping[str, Any],
    images: bool,
    batch_size: int = 256,
    tile: int | None = None,
    **settings: Any,
) -> BatchedSampler:
    """The sampler that a plain resolved configuration describes.

    Args:
        denoiser: what is sampled.
        config: holds `sampler` and `schedule` (each a `_target_` or an object) and `guidance_scale`.
        images: the data are images, so D is held to [-1, 1].
        batch_size, tile: see `BatchedSampler`.
        settings: `num_steps`, `sigma_min`, `sigma_max`, `sigma_start`, `guidance_scale` in place of
            the configuration's; None keeps the configuration's.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    check_positive("num_steps", given.get("num_steps"))
    return BatchedSampler(
        denoiser,
        sampler=_built("sampler", config["sampler"], given),
        schedule=_built("schedule", config["schedule"], given),
        guidance_scale=given.get("guidance_scale", config.get("guidance_scale", 1.0)),
        clip=(-1.0, 1.0) if images else None,
        batch_size=batch_size,
        tile=tile,
    )


def check_positive(key: str, value: Any) -> None:
    """`value` is None or an integer from 1 up, else a one-line error."""
    if value is not None:
        at_least(key, value, 1)


def _built(key: str, config: Any, given: Mapping[str, Any]) -> Any:
    """The sampler or schedule of a configuration; one that is built already stays what it is."""
    if not isinstance(config, Mapping):
        return config
    wanted = {name: given.get(name, value) if name in SETTINGS else value for name, value in config.items()}
    return safe_construction.build(key, wanted)


def make(config: Mapping[str, Any], key: str = "", kind: type = object, **arguments: Any) -> Any:
    """Build what a plain configuration describes, with further arguments of the outermost class.

    It is the user's own: here any class may be named, where a stored one has `model.safe_construction`.

    Raises:
        FlowdiffError: with `key` in front, what it names can't be built of its values, or is no `kind`.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        built = instantiate(dict(config), _convert_="all", **arguments)
    except InstantiationException as error:
        raise user_error(key, error) from error
    if not isinstance(built, kind):
        raise ConfigError(f"{key}._target_", config["_target_"], f"must be a {kind.__name__}")
    return built


def user_error(key: str, error: BaseException) -> FlowdiffError:
    """The one line in what Hydra raises when a class refuses its arguments."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FlowdiffError):
            return cause
        cause = cause.__cause__
    return FlowdiffError(f"{key}: {' '.join(str(error.__cause__ or error).split())}")
