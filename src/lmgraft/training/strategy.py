"""How processes work together: Lightning's strategies with what a frozen block needs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from lmgraft.errors import RunError
from lmgraft.graft import find_grafts
from lmgraft.graft.hosts import find_host
from lmgraft.training.checkpoints import read_checkpoint

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # bridge: until torch 2.6 is the oldest
    from torch.distributed._composable.fsdp import fully_shard  # type: ignore[attr-defined]


def make_strategy(name: str, task: LightningModule) -> Strategy | str:
    """A strategy by name; names other than fsdp are Lightning's own.

    DDP needs no search for unused parameters: every trained tensor takes part in every step, and
    frozen ones are not its business. FSDP is torch's second one (`fully_shard`): the first expects
    every parameter in `state_dict()`, where frozen ones are not. It writes one whole checkpoint,
    as the others do.
    """
    if name != "fsdp":
        return name
    # As Lightning wants it; the task itself knows nothing of processes.
    object.__setattr__(task, "configure_model", partial(shard, task))
    return ShardedStrategy(save_distributed_checkpoint=False)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's, with checkpoints in which frozen tensors are absent."""

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        module = self.lightning_module
        assert module is not None
        saved, own = set(read_checkpoint(Path(checkpoint_path))["state_dict"]), set(module.state_dict())
        if saved != own:
            raise RunError(
                f"{checkpoint_path} does not fit the model: {', '.join(sorted(saved ^ own)[:4])}",
                "resume with the settings it was started with",
            )
        module.strict_loading = False  # Lightning's check does not know that some are absent
        return super().load_checkpoint(checkpoint_path, weights_only)


def shard(task: LightningModule) -> None:
    """Shard the task's `model`, one unit for each encoder layer, one for each graft, one for the rest."""
    # Not the strategy's mesh: by default that splits tensors, not data, within a machine.
    mesh = init_device_mesh(task.trainer.strategy.root_device.type, (task.trainer.world_size,))
    model: nn.Module = task.model  # type: ignore[assignment]
    host = find_host(model)
    for layer in () if host is None else host.layers:
        fully_shard(model.get_submodule(layer), mesh=mesh)
    for inserted in find_grafts(model).values():
        fully_shard(inserted, mesh=mesh)
    fully_shard(model, mesh=mesh)


def make_plugins() -> list[Any]:
    """Under SLURM, its environment without Lightning's signal handling.

    Lightning's would save inside the handler, in the middle of a step; `StopOnSignal` saves behind it.
    """
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
