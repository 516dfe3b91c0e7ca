"""Which weights a training starts from, or an evaluation evaluates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from m2chat.errors import UserError
from m2chat.models.checkpoints import check_header, read_checkpoint, starting_stage
from m2chat.models.choosing import choose_checkpoint
from m2chat.models.fingerprints import Fingerprints


@dataclass(frozen=True)
class FoundWeights:
    """Weights that a run loads.

    Args:
        path: Their file.
        stage: Stage that they are of.
        about: What is known of them, for people; empty of a file that was named.
    """

    path: Path
    stage: str
    about: str = ""


@dataclass(frozen=True)
class WeightSearch:
    """What a run wants.

    Args:
        choice: ``none``, ``auto`` or a checkpoint file.
        stage: Stage of the run.
        before: Stage whose weights a training starts from; None for an evaluation, which wants those of its stage.
        root: Folder in which ``auto`` looks for checkpoints.
        shipped: Folder of the weights that come with the project, taken if there is no checkpoint.
        backbones: Backbones of the run.
        worlds: Generated worlds of its data.
    """

    choice: str
    stage: str
    before: str | None
    root: Path
    shipped: Path
    backbones: Fingerprints
    worlds: set[str] | None

    def find(self) -> FoundWeights | None:
        """The weights, with their header checked; None for new ones.

        Raises:
            UserError: If there are none, or they belong to another stage or to other backbones.
        """
        if self.choice == "none":
            return None
        wanted = self.before or self.stage
        found = self._newest(wanted) if self.choice == "auto" else FoundWeights(Path(self.choice), wanted)
        payload = read_checkpoint(found.path)
        found = replace(found, stage=starting_stage(payload, self.stage, wanted))
        check_header(payload, str(found.path), found.stage, self.backbones)
        return found

    def _newest(self, stage: str) -> FoundWeights:
        """The newest finished checkpoint of a stage on the same backbones and data, else the shipped weights."""
        chosen = choose_checkpoint(self.root, stage, self.backbones, self.worlds)
        path = chosen.path or self.shipped / f"{stage}.ckpt"
        naming = f"{'--model.init_args.init_from' if self.before else '--ckpt_path'} FILE"
        if chosen.others:
            listed = "\n".join(f"  {other}" for other in chosen.others)
            rank_zero_info(f"Not taken under {self.root}/ (name one by {naming}):\n{listed}")
        if not path.is_file():
            raise UserError(
                f"no finished checkpoint of stage '{stage}' on these backbones (fingerprint {self.backbones.name}) and "
                f"data under {self.root}/, and none is shipped at {path}: train that stage first, or name one by "
                f"{naming}"
            )
        return FoundWeights(path, stage, chosen.about or "shipped with the project")
