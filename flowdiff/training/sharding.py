"""`trainer.strategy=fsdp`: a process keeps a share of the weights, their average, gradients and moments of Adam.

Each step gathers the weights, all at once: the model is one unit of torch's `fully_shard`, so that a score, the
derivative inside a loss, and the derivative of that by the weights find whole weights. Of n processes each then has,
with P bytes of weights,

    4P/n   at all times (weights, average, two moments)        2P   in a step (gathered weights, gradients)

in place of 5P. A checkpoint is that of one process; it is gathered when it is written.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel as Keys
from torch.distributed.fsdp import OptimStateKeyType, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

#: What of a module is called with whole weights.
METHODS = ("training_step", "validation_terms")
WHOLE = StateDictOptions(full_state_dict=True)


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for `fully_shard`, which shards the module and its average itself."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """What Lightning's does, without a hook of the module."""
        assert self.model is not None and self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        self.shard(self.model)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                self.shard(callback._average_model.module)
        self.barrier()
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def shard(self, module: nn.Module) -> None:
        """Leave this process a share of a module's weights; those of the first process count."""
        for tensor in (*module.parameters(), *module.buffers()):
            torch.distributed.broadcast(tensor.data, 0)
        fully_shard(module, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        for name in METHODS:
            register_fsdp_forward_method(module, name)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """By `load_optimizer_state_dict`."""
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return dict(self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        load_whole(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.model is not None
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = Keys.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_NAME, self.model)
            set_optimizer_state_dict(self.model, optimizer, named, options=WHOLE)


def load_whole(module: nn.Module | None, state: Mapping[str, Any]) -> None:
    """Fill a module, sharded or not, with whole tensors that every process has."""
    assert module is not None
    set_model_state_dict(module, dict(state), options=WHOLE)


def gather(value: Any) -> Any:
    """A tensor whose shares the processes have, whole, on the CPU; anything else as it is. All processes call it."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """The share of a tensor that this process has: all of it, if it isn't sharded."""
    return value.to_local() if isinstance(value, DTensor) else value
