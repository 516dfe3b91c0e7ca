"""What users are shown of the model that answers: which it is, what it knows, what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from m2chat.errors import UserError
from m2chat.evaluation.names import STAGES
from m2chat.pipeline import M2ChatPipeline
from m2chat.pipeline.lens import Lens, Reading, Readings
from m2chat.world import Example, World, find_world


def world_of(pipe: M2ChatPipeline) -> World | None:
    """The generated world that a model was trained in; None if there were other data too, or it is not recorded."""
    worlds = pipe.origin.worlds
    if len(worlds) == 1 and worlds[0]:
        with suppress(UserError):  # a world of another installation
            return find_world(worlds[0])
    return None


def about(pipe: M2ChatPipeline) -> str:
    """One line: which model answers, on which networks, and what it can talk about."""
    origin, backbone = pipe.origin, pipe.origin.backbone
    networks = f"{Path(backbone.language_model).name} and {Path(backbone.image_decoder).name}"
    model = f"{origin.model or Path(origin.path).name}, {STAGES[origin.stage]}, on {networks}"
    world = world_of(pipe)
    return f"Model: {model}; draws {pipe.image_size} × {pipe.image_size} pixels. {world.knows if world else ''}".strip()


def examples_of(pipe: M2ChatPipeline) -> Mapping[str, Sequence[Example]]:
    """Requests to try, by task; none for a model whose world is not known."""
    world = world_of(pipe)
    return world.examples() if world else {}


def readings_of(pipe: M2ChatPipeline, lens: Lens) -> Readings:
    """What the judge of a model's world reads from a lens' pictures; None if there is none, or for other sizes."""
    world, shape = world_of(pipe), lens.layers[0].shape
    if world is None or shape != (world.image_size, world.image_size, 3):
        return None
    context = lens.context if lens.context is not None and lens.context.shape == shape else None
    with suppress(UserError):  # a judge that is not here: its pictures stay without words
        return [Reading(seen, world.summary(seen)) for seen in world.seen_in([context, *lens.layers])]
    return None
