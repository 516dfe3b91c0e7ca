"""Views inside a reply (paper, Fig. 5): the picture that each layer of the language model gives, and attention maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from m2chat.errors import UserError
from m2chat.models.m3adapter import attention_maps
from m2chat.pipeline.base import PipelineBase
from m2chat.pipeline.drawing import DrawSettings, noise_seed
from m2chat.pipeline.inputs import waiting
from m2chat.pipeline.session import Session
from m2chat.schema import Conversation, Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Reading(NamedTuple):
    """What a judge reads from a picture: attributes, name to value, and the same in a few short lines."""

    attributes: Mapping[str, str]
    text: str


Readings: TypeAlias = Sequence[Reading] | None
"""The judge's reading of each picture; None without a judge."""
_IN_LINE = 11
"""Pictures beside each other in the figure, at most: language models have dozens of layers."""
_REPLY = "reply"
"""Name of the picture behind those of single layers."""
_CLASS_TOKENS = 1
"""Leading tokens of CLIP that are no patches."""


@dataclass(frozen=True)
class Lens:
    """One picture of a reply, seen from inside.

    Args:
        request: Text of the user.
        answer: Text of the picture's segment.
        caption: Caption from which the picture was drawn.
        context: Context picture, if there was one.
        layers: Pictures drawn from the hidden states behind the embedding and behind each layer, all from the same
            noise: L + 1 for L layers. If the M³Adapter reads other layers than the last, each of these stands in the
            place of all that it reads, and behind them comes the reply's picture.
        names: Name of each of these pictures.
        gates: g of Eq. 3 at each of them, 0-1.
        tokens: Tokens of the caption, and one entry for all image tokens together.
        token_attention: Attention of the queries to them, (Q, tokens); rows sum to 1.
        picture_attention: Attention to the context picture, mean over the queries, (rows, columns) of patches.
        gate_by_turn: g of every picture of the conversation, one list per reply.
    """

    request: str
    answer: str
    caption: str
    context: Picture | None
    layers: list[Picture]
    names: list[str]
    gates: list[float]
    tokens: list[str]
    token_attention: NDArray[np.float32]
    picture_attention: NDArray[np.float32]
    gate_by_turn: list[list[float]]

    @property
    def by_layer(self) -> list[float]:
        """The gates of the single layers."""
        return self.gates[:-1] if self.names[-1] == _REPLY else self.gates


def look_inside(session: Session, turn: int = -1, picture: int = 0) -> Lens:
    """The view inside a picture of a session.

    Args:
        session: Session.
        turn: Index of the reply in `Session.turns`; negative ones count from the end.
        picture: Index of the picture within the reply.

    Raises:
        UserError: If that turn is no reply, or has no such picture.
    """
    turns = session.turns
    index = turn if turn >= 0 else len(turns) + turn
    if not 0 <= index < len(turns) or turns[index].role != "assistant":
        raise UserError(f"turn={turn}: the conversation has {len(turns)} turns, and that one is no reply")
    if not 0 <= picture < len(turns[index].pictures):
        raise UserError(f"picture={picture}: that reply has {len(turns[index].pictures)} pictures, numbered from 0")
    settings, seed = session.settings, session.notes[index]["seed"]
    draw = settings.drawing(session.pipe, seed)
    gates = [list(note.get("gate", [])) for note in session.notes if note]
    return inside(session.pipe, session.state.conversation, index, picture, draw, gates)


@torch.no_grad()
def inside(
    pipe: PipelineBase,
    conversation: Conversation,
    turn: int,
    picture: int,
    draw: DrawSettings,
    gate_by_turn: Sequence[list[float]] = (),
) -> Lens:
    """The view inside one picture of a reply that a conversation has.

    Args:
        pipe: Pipeline with the model.
        conversation: Conversation.
        turn: Index of the reply.
        picture: Index of the picture within the reply.
        draw: Settings of drawing.
        gate_by_turn: `Lens.gate_by_turn`.
    """
    inputs = waiting([conversation], pipe.vision, pipe.device, [turn])
    (view,), (name,) = inputs.views, inputs.names
    segment = [k for k, target in enumerate(view.targets) if target is not None][picture]
    encoded = pipe.layout.encode(view.request, view.reply, segment)
    model = pipe.model
    with pipe.lock:
        ids = torch.tensor([encoded.input_ids], device=pipe.device)
        masks = {
            mask: torch.tensor([getattr(encoded, mask)], device=pipe.device) for mask in ("answer", "caption", "image")
        }
        f_img = model.clip(inputs.context_pixels)
        hidden = model.llama.model(ids, visual_query=model.visual_query(f_img), output_hidden_states=True).hidden_states
        names = ["embedding", *(f"layer {k}" for k in range(1, len(hidden)))]
        chosen = [layer % len(hidden) for layer in model.read_layers]
        if chosen == [len(hidden) - 1]:
            # The last state has passed the final norm already; the adapter was trained on normed states.
            read = torch.cat([*(model.llama.model.norm(layer) for layer in hidden[:-1]), hidden[-1]])  # (L + 1, T, D)
        else:
            states = torch.cat(hidden)
            read = torch.cat([states.expand(len(chosen), *states.shape), states[chosen][:, None]], 1)
            read = read if len(chosen) > 1 else read[0]
            names.append(_REPLY)
        count = len(names)
        condition = model.m3adapter(
            read,
            *(masks[mask].expand(count, -1) for mask in ("answer", "caption", "image")),
            f_img.expand(count, -1, -1),
            inputs.has_context.expand(count),
            pipe.origin.stage != "align",
        )
        seed = noise_seed(draw.seed, f"{name}/{segment}")
        layers = pipe.replier(draw=draw).paint(condition, [seed] * count)
        last = read[..., -1:, :, :]
        to_tokens, to_patches = attention_maps(model.m3adapter, last, masks["caption"] | masks["image"], f_img)
    tokens, spread = _by_token(pipe, encoded.input_ids, encoded.caption, encoded.image, to_tokens[0])
    patches = to_patches[0, :, _CLASS_TOKENS:].mean(0).float().cpu().numpy()
    side = int(len(patches) ** 0.5)
    return Lens(
        view.request.instruction,
        view.reply[segment].answer,
        view.reply[segment].caption or "",
        None if view.context is None else conversation.images[view.context].pixels,
        layers,
        names,
        condition.gate.tolist(),
        tokens,
        spread,
        patches[: side * side].reshape(side, side),
        list(gate_by_turn),
    )


def _by_token(
    pipe: PipelineBase, ids: Sequence[int], caption: Sequence[bool], image: Sequence[bool], weights: torch.Tensor
) -> tuple[list[str], NDArray[np.float32]]:
    """Texts of the caption's tokens, and the attention to each, (Q, tokens); the image tokens are summed."""
    at = [k for k, flag in enumerate(caption) if flag]
    slots = [k for k, flag in enumerate(image) if flag]
    names = [pipe.layout.tokenizer.decode([ids[k]]) or "·" for k in at]
    spread = torch.cat([weights[:, at], weights[:, slots].sum(1, keepdim=True)], 1)
    return [*names, f"<|img|>×{len(slots)}"], spread.float().cpu().numpy()


def strip(lens: Lens, readings: Readings = None) -> list[tuple[Picture | None, str, str]]:
    """The context picture and each layer's picture, with a title and what a judge reads.

    Args:
        lens: View.
        readings: Readings of the context picture and then of each layer's picture; without attributes where there is no
            picture, or one that the judge does not recognise.
    """
    titles = ["context", *(f"{name}, g={gate:.2f}" for name, gate in zip(lens.names, lens.gates, strict=True))]
    lines = [reading.text for reading in readings] if readings is not None else [""] * len(titles)
    return list(zip([lens.context, *lens.layers], titles, lines, strict=True))


def charts(lens: Lens, readings: Readings = None) -> dict[str, Figure]:
    """The plots of `figure` one by one, by title, for a page that is narrower than the figure.

    Args:
        lens: View.
        readings: Readings of a judge, as for `strip`.
    """
    from matplotlib.figure import Figure as Canvas

    drawn = {}
    for name, draw in _CHARTS.items():
        drawn[name] = Canvas(figsize=(4.2, 3), layout="constrained")
        draw(drawn[name].subplots(), lens, readings)
    return drawn


def figure(lens: Lens, readings: Readings = None) -> Figure:
    """The whole view as one matplotlib figure.

    Args:
        lens: View.
        readings: Readings of a judge, as for `strip`.
    """
    from matplotlib.figure import Figure as Canvas

    shown = strip(lens, readings)
    lines_of_pictures = math.ceil(len(shown) / _IN_LINE)
    in_line = math.ceil(len(shown) / lines_of_pictures)
    height = 3.0 * lines_of_pictures
    page = Canvas(figsize=(2 * in_line, height + 5.4), layout="constrained")
    page.suptitle(f"“{lens.request}”\n“{lens.answer}”  caption: {lens.caption}", fontsize=11)
    rows: Any = page.subfigures(3, 1, height_ratios=(height, 2.6, 3))
    places = rows[0].subplots(lines_of_pictures, in_line, squeeze=False).ravel()
    for axis in places:
        axis.set_axis_off()
    for axis, (picture, title, lines) in zip(places, shown, strict=False):
        axis.set_title(title, fontsize=9)
        if picture is not None:
            axis.imshow(picture, interpolation="nearest")
        axis.text(0.5, -0.04, lines, transform=axis.transAxes, ha="center", va="top", fontsize=8)
    axes = [*rows[1].subplots(1, 2), *rows[2].subplots(1, 2, width_ratios=(3, 1))]
    for axis, (name, draw) in zip(axes, _CHARTS.items(), strict=True):
        axis.set_title(name, fontsize=10)
        draw(axis, lens, readings)
    return page


def _gates(axis: Any, lens: Lens, _: Readings) -> None:
    """The gate of every picture over the number of its reply."""
    replies = [(number, g) for number, gates in enumerate(lens.gate_by_turn, 1) for g in gates]
    axis.plot([number for number, _ in replies], [g for _, g in replies], "o-", color="tab:green")
    axis.set(xlabel="reply", ylabel="g", ylim=(-0.05, 1.05))
    axis.set_xticks(range(1, len(lens.gate_by_turn) + 1))


def _tokens(axis: Any, lens: Lens, _: Readings) -> None:
    """The attention of each query, a row, to each token, a column."""
    axis.imshow(lens.token_attention, aspect="auto", cmap="magma", interpolation="nearest")
    axis.set_xticks(range(len(lens.tokens)), lens.tokens, rotation=60, ha="right", fontsize=8)
    axis.set(ylabel="query")


def _patches(axis: Any, lens: Lens, _: Readings) -> None:
    """The attention of the queries over the context picture."""
    axis.set_axis_off()
    if lens.context is None:
        axis.text(0.5, 0.5, "no context picture", transform=axis.transAxes, ha="center")
        return
    extent = (0, 1, 1, 0)
    axis.imshow(lens.context, extent=extent, interpolation="nearest")
    axis.imshow(lens.picture_attention, extent=extent, cmap="magma", alpha=0.6, interpolation="nearest")


def _changes(axis: Any, lens: Lens, readings: Readings) -> None:
    """Number of attributes that each layer's picture shares with the context picture and with the reply's."""
    axis.set(xlabel="layer", ylabel="attributes as in")
    if not readings:
        axis.text(0.5, 0.5, "no judge of these pictures", transform=axis.transAxes, ha="center")
        return
    seen = [reading.attributes for reading in readings]
    for name, wanted, style in (("context", seen[0], "s--"), ("reply", seen[-1], "o-")):
        if wanted:
            single = seen[1 : 1 + len(lens.by_layer)]
            equal = [sum(read.get(key) == value for key, value in wanted.items()) for read in single]
            axis.plot(range(len(equal)), equal, style, label=f"{name} ({len(wanted)})")
    axis.set_xticks(range(len(lens.by_layer)))
    axis.set_ylim(-0.3, max(map(len, seen)) + 0.5)
    axis.legend(fontsize=8)


_CHARTS: dict[str, Callable[[Any, Lens, Readings], None]] = {
    "attributes that the judge reads": _changes,
    "gate of each reply": _gates,
    "the queries over the caption's tokens": _tokens,
    "the queries over the context picture": _patches,
}
