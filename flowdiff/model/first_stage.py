"""The autoencoder of a model of latents: where it is, and whether it is the one that the model was trained with."""

from typing import Any

from flowdiff.data.first_stage import FirstStage, Identity
from flowdiff.errors import ConfigError, spell
from flowdiff.model import safe_construction
from flowdiff.model.checkpoint import Facts


def open_first_stage(facts: Facts, path: str | None = None) -> FirstStage:
    """What encodes images to a model's latents and decodes these; of a model of pixels the identity.

    Args:
        facts: of the model.
        path: the autoencoder's folder; None: where it was in training.

    Raises:
        FlowdiffError: the autoencoder is not where it was in training, or is another one; or it is not said where,
            and the checkpoint is another user's.
    """
    if facts.first_stage is None:
        return Identity()
    config: dict[str, Any] = facts.config.get("first_stage") or {}
    if path is not None or not facts.own:
        config = safe_construction.drop_outside("first_stage", config)
    elif config.get("path") is not None:
        path = config["path"]
    if path is None:
        stored = spell(str((facts.config.get("first_stage") or {}).get("path")))
        where = f"{stored} is only what the checkpoint says, which is not followed"
        raise ConfigError("first_stage.path", "null", f"give the autoencoder's folder ({where})")
    found: FirstStage = safe_construction.build("first_stage", {**config, "path": path}, outside=True)
    if found.fingerprint != facts.first_stage["sha256"]:
        raise ConfigError("first_stage.path", path, "not the autoencoder that this model was trained with")
    return found
