"""The judge of the emoji world: a small network that reads concept, style and attributes from pixels.

It has seen every true picture, the held-out ones too, or it could not say whether one of those was drawn. It is used in
evaluation only. Beside its verdict stands the distance to the true picture that it took a picture for, so that what
resembles nothing is not given a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.schema import Picture
from m2chat.worlds.emoji.captions import CaptionReader
from m2chat.worlds.emoji.scenes import GENDERS, HAIRS, MAX_ERROR, SIZE, STYLES, TONES, Pictures, Scene

ROOT = Path("data/pocket")
"""Folder of the shipped pictures and the judge."""
VALUES: dict[str, tuple[str, ...]] = {"style": tuple(STYLES), "tone": TONES, "hair": HAIRS, "gender": GENDERS}


class JudgeNetwork(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] to logits of each attribute.

    Args:
        concepts: Number of concepts.
        channels: Channels at 32, 16, 8 and 4 pixels.
    """

    def __init__(self, concepts: int, channels: Sequence[int] = (24, 64, 128, 192)) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for level, (before, after) in enumerate(zip((3, *channels), channels, strict=False)):
            stages += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
            stages += [_Residual(after)] * bool(level)  # at 32 pixels it would be a fifth of all work
        self.stages = nn.Sequential(*stages)
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(channels[-1] * 16, 256), nn.LayerNorm(256), nn.ReLU())
        sizes = {"concept": concepts} | {name: len(values) for name, values in VALUES.items()}
        self.heads = nn.ModuleDict({name: nn.Linear(256, size) for name, size in sizes.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits (B, values) by attribute."""
        # On a CPU the convolutions are a third quicker with the channels last.
        state = self.trunk(self.stages(pixels.contiguous(memory_format=torch.channels_last)))
        return {name: head(state) for name, head in self.heads.items()}


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.GroupNorm(8, channels), nn.ReLU())

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels + self.layers(pixels)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Verdict:
    """What the judge saw.

    Args:
        scene: The true picture's scene that it took the picture for.
        error: Root-mean-square distance to that true picture, in grey levels of 255.
        top: Names of the five likeliest concepts, the likeliest first.
    """

    scene: Scene
    error: float
    top: tuple[str, ...]

    @property
    def key(self) -> str:
        """Attributes of the scene as text."""
        return "/".join(self.scene.attributes.values())

    @property
    def seen(self) -> dict[str, str]:
        """Attributes of what is shown; none if the picture resembles nothing."""
        return self.scene.attributes if self.error <= MAX_ERROR else {}

    def right(self, wanted: Mapping[str, str]) -> dict[str, bool]:
        """Whether each wanted attribute is there; all are wrong in a picture that resembles nothing."""
        return {name: self.seen.get(name) == value for name, value in wanted.items()}

    def all_right(self, wanted: Mapping[str, str]) -> bool:
        """Whether every wanted attribute is there."""
        return all(self.right(wanted).values())


class PictureJudge:
    """Reads pictures.

    Args:
        network: A trained network.
        pictures: All true pictures; their concepts, sorted, are the network's.
    """

    def __init__(self, network: JudgeNetwork, pictures: Pictures) -> None:
        self.network, self.pictures = network.eval(), pictures
        self.concepts = pictures.concepts
        place = {name: i for i, name in enumerate(self.concepts)}
        known: dict[str, dict[str, int]] = {"concept": place}
        known |= {name: {value: i for i, value in enumerate(values)} for name, values in VALUES.items()}
        self.codes = {
            name: torch.tensor([values[scene.attributes[name]] for scene in pictures.scenes])
            for name, values in known.items()
        }

    @classmethod
    def load(cls, folder: Path, pictures: Pictures) -> PictureJudge:
        """The judge of a folder with ``model.safetensors``.

        Raises:
            UserError: If there is none, or it was trained on other concepts.
        """
        from safetensors.torch import load_file

        path = folder / "model.safetensors"
        if not path.is_file():
            raise UserError(f"there is no judge in {folder}: `python -m m2chat.worlds.emoji judge` trains it")
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        network = JudgeNetwork(len(tensors["heads.concept.bias"]))
        network.load_state_dict(tensors)
        if len(tensors["heads.concept.bias"]) != len(pictures.concepts):
            raise UserError(f"{path} knows {len(tensors['heads.concept.bias'])} concepts, not {len(pictures.concepts)}")
        return cls(network, pictures)

    @torch.no_grad()
    def read(self, pictures: NDArray[np.uint8]) -> list[Verdict]:
        """A verdict a picture.

        The scene is the likeliest one that exists: a verdict such as "an apple with curly hair" is impossible.

        Args:
            pictures: uint8, (B, 64, 64, 3).
        """
        if pictures.ndim != 4 or pictures.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"the judge reads pictures of (B, {SIZE}, {SIZE}, 3), not {pictures.shape}")
        verdicts: list[Verdict] = []
        for start in range(0, len(pictures), 128):
            part = np.ascontiguousarray(pictures[start : start + 128])
            pixels = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
            logits = {name: values.log_softmax(1) for name, values in self.network(pixels).items()}
            total = sum(logits[name][:, codes] for name, codes in self.codes.items())
            best = torch.as_tensor(total).argmax(1).tolist()
            tops = logits["concept"].topk(min(5, len(self.concepts)), 1).indices.tolist()
            truth = self.pictures.pixels[best].astype(np.float32)
            errors = np.sqrt(np.square(part.astype(np.float32) - truth).mean((1, 2, 3)))
            for index, error, top in zip(best, errors.tolist(), tops, strict=True):
                names = tuple(self.concepts[i] for i in top)
                verdicts.append(Verdict(self.pictures.scenes[index], error, names))
        return verdicts


@cache
def world_judge(root: Path = ROOT) -> PictureJudge:
    """The judge, with all true pictures.

    Args:
        root: Folder with ``judge/`` and ``pictures/``.
    """
    from m2chat.worlds.emoji.pictures import read_pictures

    return PictureJudge.load(root / "judge", read_pictures(root / "pictures"))


@cache
def caption_reader(root: Path = ROOT) -> CaptionReader:
    """Reads what captions name.

    Args:
        root: Folder with the shipped ``pictures/``.
    """
    from m2chat.worlds.emoji.pictures import read_scenes

    return CaptionReader(read_scenes(root / "pictures"))


def verdicts(pictures: Sequence[Picture | None], root: Path = ROOT) -> list[Verdict | None]:
    """A verdict a picture; None where it is missing.

    Args:
        pictures: RGB, (64, 64, 3), 0-255, or None.
        root: Folder with ``judge/`` and ``pictures/``.
    """
    there = [picture for picture in pictures if picture is not None]
    judged = iter(world_judge(root).read(np.stack(there)) if there else [])
    return [None if picture is None else next(judged) for picture in pictures]


def seen_in(pictures: Sequence[Picture | None], root: Path = ROOT) -> list[dict[str, str]]:
    """Attributes that the judge reads; none in a picture that is missing or resembles nothing.

    Args:
        pictures: RGB, (H, W, 3), 0-255, or None.
        root: Folder with ``judge/`` and ``pictures/``.
    """
    return [{} if verdict is None else verdict.seen for verdict in verdicts(pictures, root)]
