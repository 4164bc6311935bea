"""From Hydra's configuration to a typed request, once: nothing below this folder sees a DictConfig."""

from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowdiff.errors import ConfigError, one_line
from flowdiff.model.configuration import leaves
from flowdiff.model.requests import Request, check, fill


def to_plain(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """The configuration as dicts, lists, numbers and strings."""
    try:
        config = OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "configuration")
        typed = OmegaConf.to_container(cfg, resolve=False)
        raise ConfigError(key, dict(leaves(typed)).get(key), one_line(error).split(" full_key:")[0]) from error
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def make_request(kind: type[Request], cfg: DictConfig, unresolved: Sequence[str] = ()) -> Request:
    """What a composed configuration asks of a stored model.

    Args:
        kind: of request.
        cfg: composed from conf/ and the command line.
        unresolved: keys whose interpolations have nothing here that they could mean.

    Raises:
        ConfigError: a value that is not allowed, with its key.
    """
    config = to_plain(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in unresolved]))
    for key in unresolved:
        node = cfg.get(key)
        config[key] = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    check(kind, config)
    if "data_root" in cfg and OmegaConf.is_interpolation(cfg, "data_root"):  # the environment's: asked for later
        config["data_root"] = None
    if HydraConfig.initialized():
        config["output_dir"] = HydraConfig.get().runtime.output_dir  # in a sweep a folder for each job
    return fill(kind, config)
