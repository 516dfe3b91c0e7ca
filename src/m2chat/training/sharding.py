"""How the model is cut for FSDP2."""

from __future__ import annotations

from typing import Any

from m2chat.models.m2chat import M2ChatModel
from m2chat.models.units import shard_units


def shard(model: M2ChatModel, mesh: Any, shard_frozen: bool = True) -> None:
    """Shards a model in place; from then on only its `forward` may be called, since FSDP2 gathers weights there.

    Args:
        model: Already frozen as its stage wants.
        mesh: The data-parallel device mesh.
        shard_frozen: Whether frozen parameters are sharded as well; if not, every process holds them whole, which
            costs memory and saves most of the traffic.
    """
    from torch.distributed.fsdp import fully_shard

    ignored = set() if shard_frozen else {p for p in model.parameters() if not p.requires_grad}
    for unit in shard_units(model):
        if any(parameter not in ignored for parameter in unit.parameters()):
            fully_shard(unit, mesh=mesh, ignored_params=ignored)
    fully_shard(model, mesh=mesh, ignored_params=ignored)
