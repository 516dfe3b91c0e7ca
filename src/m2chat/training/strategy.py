"""Fully sharded training (FSDP2) in which checkpoints hold trained tensors only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.optim import Optimizer

from m2chat.errors import UserError
from m2chat.files import cannot_write, is_failed_write
from m2chat.host_memory import return_large_blocks
from m2chat.models.checkpoints import check_names, plain_name, read_checkpoint, trainable_names
from m2chat.models.mapped import LIFTED_BLOCK, lift, settle
from m2chat.models.reading import ReadingModel
from m2chat.models.units import shard_units
from m2chat.training.atomic_io import AtomicCheckpointIO, beside, sweep


def shard(model: ReadingModel, mesh: Any, shard_frozen: bool = True) -> None:
    """Shards a model in place; from then on only its `forward` may be called, since FSDP2 gathers weights there.

    Weights that are mapped from files get memory for one unit at a time, of which each process keeps its rows: it never
    holds more than its share and a unit. One process alone has nothing to share; its frozen networks stay as they are.

    Args:
        model: Model in which the stage's parameters are set to be trained.
        mesh: Data-parallel device mesh.
        shard_frozen: Whether frozen parameters are sharded as well; if not, every process holds them whole, which
            costs memory and saves most of the traffic.
    """
    from torch.distributed.fsdp import fully_shard

    whole = not shard_frozen or mesh.size() == 1
    if whole:
        settle(model)
    else:
        return_large_blocks(LIFTED_BLOCK)
    ignored = {p for p in model.parameters() if not p.requires_grad} if whole else set()
    for unit in (*shard_units(model), model):
        if any(parameter not in ignored for parameter in unit.parameters()):
            if not whole:
                lift(unit)
            fully_shard(unit, mesh=mesh, ignored_params=ignored)


class M2ChatFSDPStrategy(ModelParallelStrategy):
    """Shards over all processes; the module itself calls `fully_shard`, in `configure_model`.

    The mesh to shard on is its ``device_mesh["data_parallel"]``. Lightning's loader expects every tensor of the
    model, frozen ones too, and its default is tensor parallelism within a machine.

    Args:
        data_parallel_size: Processes that share the data; None means all that `tensor_parallel_size` leaves.
        tensor_parallel_size: Processes that share a layer.
        save_distributed_checkpoint: Whether each process writes its own share into a folder. The default is one file:
            the trained tensors are small, and it loads everywhere.
    """

    def __init__(
        self,
        data_parallel_size: int | None = None,
        tensor_parallel_size: int = 1,
        save_distributed_checkpoint: bool = False,
    ) -> None:
        super().__init__(
            data_parallel_size="auto" if data_parallel_size is None else data_parallel_size,
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
        )

    def setup_environment(self) -> None:
        """Starts the process group and lays out the device mesh."""
        if self._data_parallel_size == "auto":
            assert isinstance(self._tensor_parallel_size, int)
            self._data_parallel_size = max(1, self.num_nodes * self.num_processes // self._tensor_parallel_size)
        super().setup_environment()

    def validation_step(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses to evaluate: replies differ in length, so the processes would wait for each other for ever.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "replies cannot be generated from sharded weights: train with --trainer.limit_val_batches 0, and evaluate "
            "the checkpoint with `lightning test` and --trainer.strategy ddp, where every process holds all weights"
        )

    test_step = validation_step

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained tensors: this process's share of them, or all of them on rank 0."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        assert self.model is not None
        return get_model_state_dict(self.model, options=_options(full=not self._save_distributed_checkpoint))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Writes a file, or a folder of shares with the list of their checksums; an older one stays until it is whole.

        Args:
            checkpoint: Contents, as Lightning's `dump_checkpoint` collects them.
            filepath: File or folder to write.
            storage_options: Must be None.

        Raises:
            UserError: If the disk is full or the folder cannot be written.
        """
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        from torch.distributed.checkpoint.api import CheckpointException

        from m2chat.training.shares import write_checksums

        path = Path(self.broadcast(str(filepath)))
        part = Path(self.broadcast(str(beside(path, "part"))))
        try:
            if self.is_global_zero and path.parent.is_dir():
                sweep(path.parent)
            super().save_checkpoint(checkpoint, part, storage_options)
            write_checksums(part, self.global_rank, self.world_size)
            if self.is_global_zero:
                writer = self.checkpoint_io
                (writer if isinstance(writer, AtomicCheckpointIO) else AtomicCheckpointIO()).put_shares(part, path)
            self.barrier("shares")
        except (CheckpointException, OSError, RuntimeError) as error:
            failures = error.failures.values() if isinstance(error, CheckpointException) else ()
            reason = next((reason for reason, _ in failures), error)
            if not (isinstance(reason, OSError) or is_failed_write(reason)):  # such as a process that is gone
                raise
            text = cannot_write(path, reason)
            raise UserError(f"{text}. An older checkpoint of that name is untouched") from error
        finally:
            if self.is_global_zero:
                shutil.rmtree(part, ignore_errors=True)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Restores trained tensors and optimisers from a file or from a folder of shares.

        Args:
            checkpoint_path: File or folder that `save_checkpoint` wrote, by any number of processes.
            weights_only: Ignored: pickled objects are always refused.

        Returns:
            The rest of the checkpoint.

        Raises:
            UserError: If it is damaged, or does not hold exactly the tensors that are trained here.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        from m2chat.training.shares import is_shares

        return self._load_shares(path) if is_shares(path) else self._load_file(path)

    def _load_file(self, path: Path) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

        assert self.model is not None
        whole = read_checkpoint(path)
        check_names(whole["state_dict"], trainable_names(self.model), str(path))
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        # The optimiser goes first: reading its state steps it once with zero gradients, after which weights are set.
        for optimizer, saved in zip(self.optimizers, whole["optimizer_states"] if self.optimizers else [], strict=True):
            named = _by_name(saved, self.model, optimizer)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=options)
        set_model_state_dict(self.model, whole.pop("state_dict"), options=options)
        return whole

    def _load_shares(self, path: Path) -> dict[str, Any]:
        from torch.distributed.checkpoint import state_dict as states

        from m2chat.training.shares import read_metadata, read_rest, read_shares, verify_shares

        assert self.model is not None
        verify_shares(path, self.global_rank, self.world_size)
        options = _options(full=False)
        stored = read_metadata(path).state_dict_metadata
        prefix = "state_dict."
        names = [name.removeprefix(prefix) for name in stored if name.startswith(prefix)]
        check_names(names, trainable_names(self.model), str(path))
        for index, optimizer in enumerate(self.optimizers):
            template: Any = states.get_optimizer_state_dict(self.model, optimizer, options=options)
            # A parameter that never had a gradient, such as the gate of a layer without prompts, has no state.
            within = f"optimizer_{index}.state."
            known = {name.removeprefix(within).rpartition(".")[0] for name in stored if name.startswith(within)}
            template["state"] = {name: state for name, state in template["state"].items() if name in known}
            saved = {f"optimizer_{index}": template}
            read_shares(path, saved)
            states.set_optimizer_state_dict(
                self.model, optimizer, optim_state_dict=saved[f"optimizer_{index}"], options=options
            )
        tensors = {"state_dict": states.get_model_state_dict(self.model, options=options)}
        read_shares(path, tensors)
        states.set_model_state_dict(self.model, tensors["state_dict"], options=options)
        return read_rest(path)


def require_safe_reader(strategy: Strategy, path: str | Path) -> None:
    """Refuses a checkpoint in shares where another strategy than ours would read it.

    Args:
        strategy: Strategy of the run.
        path: Value of ``--ckpt_path``.

    Raises:
        UserError: In that case: Lightning's readers unpickle whatever is in the folder.
    """
    if Path(path).is_dir() and not isinstance(strategy, M2ChatFSDPStrategy):
        raise UserError(
            f"--ckpt_path {path} is a folder, and {type(strategy).__name__} does not read those safely: make one file "
            "of it with `m2chat consolidate`, or train with M2ChatFSDPStrategy"
        )


def _options(full: bool) -> StateDictOptions:
    return StateDictOptions(full_state_dict=full, cpu_offload=True, ignore_frozen_params=True, strict=False)


def _by_name(saved: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's saved state with parameters known by name, as sharding wants it.

    A file numbers the parameters, differently by one process and by many, but always in the optimiser's order.
    """
    names = {parameter: plain_name(name) for name, parameter in model.named_parameters()}
    groups = zip(saved["param_groups"], optimizer.param_groups, strict=True)
    renamed = [
        {number: names[parameter] for number, parameter in zip(old["params"], new["params"], strict=True)}
        for old, new in groups
    ]
    every = {number: name for group in renamed for number, name in group.items()}
    return {
        "state": {every[number]: state for number, state in saved["state"].items()},
        "param_groups": [
            {**group, "params": list(of.values())} for group, of in zip(saved["param_groups"], renamed, strict=True)
        ],
    }
