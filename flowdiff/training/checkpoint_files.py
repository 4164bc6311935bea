"""Checkpoints on the disk as Lightning writes and reads them: whole or not at all."""

from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from flowdiff.errors import FlowdiffError
from flowdiff.files import write_atomically
from flowdiff.model import seal
from flowdiff.model.checkpoint import check_all_finite, read
from flowdiff.model.facts import about


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, flushes it to the disk and then renames it.

    A run that is killed in the middle of a write leaves the previous file whole; a full disk is an `OSError`.

    Args:
        known: the content of the checkpoint that a run goes on from, which has been read; Lightning asks for it again.
    """

    def __init__(self, known: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.known = known

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, all of it or nothing, with its digest if it is one of flowdiff."""
        content = seal.add_seal(checkpoint, seal.own_key(make=False)) if "flowdiff" in checkpoint else checkpoint
        write_atomically(path, lambda file: torch.save(content, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """`model.checkpoint.read`, for Lightning: what a run goes on from is held to the same as any other file."""
        content, self.known = read(path) if self.known is None else self.known, None
        try:
            for key in ("state_dict", "current_model_state"):
                check_all_finite(content.get(key) or {})
        except FlowdiffError as error:
            raise about(path, error) from error
        return content
