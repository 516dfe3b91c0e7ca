"""What a feature cache holds of a source: which replies, and how many rows of each."""

from __future__ import annotations

from m2chat.data.dataset import Source
from m2chat.data.feature_file import FeaturePart
from m2chat.data.feature_form import NO_PICTURE, FeatureView, Index
from m2chat.data.feature_prints import unreadable
from m2chat.data.peek import peek
from m2chat.data.sources import BadSample
from m2chat.errors import UserError
from m2chat.schema import Sample
from m2chat.text import Layout, view_of
from m2chat.text.view import replies_of

PAIRS = ("caption", "instruct")
"""Kinds whose validation needs no language model: their captions are given."""


def views_of(sample: Sample, layout: Layout, looked: int | None = None) -> list[FeatureView]:
    """The replies of a sample that training may draw, each with each of its pictures.

    Args:
        sample: The sample; its pixels do not matter.
        layout: Layout of the sequences.
        looked: CLIP tokens of a context picture, which are the rows of stage 2; None for those of stage 1.
    """
    views = []
    for turn in replies_of(sample):
        view = view_of(sample, turn)
        drawn = [place for place, picture in enumerate(view.targets) if picture is not None]
        for target in drawn or [NO_PICTURE]:
            if looked is None:
                encoded = layout.encode(view.request, view.reply, max(target, 0))
                rows = sum(map(bool, encoded.caption)) + sum(map(bool, encoded.image))
            else:
                rows = 0 if view.context is None else looked
            views.append(FeatureView(turn, target, rows))
    return views


def plan_part(source: Source, layout: Layout, split: str, looked: int | None = None) -> Index:
    """The index of a source: its replies, and how many tokens of each the M³Adapter reads.

    Args:
        source: The opened source.
        layout: Layout of the sequences.
        split: ``train`` or ``val``.
        looked: CLIP tokens of a context picture for stage 2; None for stage 1.

    Raises:
        UserError: If a sample cannot be read, has a context picture, or cannot be validated without a language model.
    """
    samples = []
    for shard, kept in zip(source.shards, source.kept, strict=True):
        for place in map(int, kept):
            entry = shard.entries[place]
            try:
                sample = peek(shard.members(place), entry.key, source.name)
            except (BadSample, OSError) as error:
                raise unreadable(source, shard, place, error) from error
            if looked is not None:
                samples.append((sample.id, sample.kind, views_of(sample, layout, looked)))
                continue
            remedy = f"leave the source out of data.{split}, or set its `kinds` to [caption]"
            if any(view_of(sample, turn).context is not None for turn in replies_of(sample)):
                raise UserError(
                    f"stage 1 trains on caption pairs, but sample {sample.id!r} of {source.name!r} has a context "
                    f"picture: {remedy}"
                )
            if split == "val" and sample.kind not in PAIRS:
                raise UserError(
                    f"to validate {sample.id!r} of {source.name!r}, a {sample.kind}, the language model must write, "
                    f"and with a feature cache it is not loaded: {remedy}, or set trainer.limit_val_batches to 0"
                )
            samples.append((sample.id, sample.kind, views_of(sample, layout)))
    return Index.of(samples)


def source_item(source: Source, part: FeaturePart, record: int) -> tuple[Sample, int, int | None]:
    """Sample, turn and segment of a record, for the collator.

    Raises:
        UserError: If the sample cannot be read.
    """
    shard, index = source.place(part.number(record))
    try:
        sample = source.read(shard, index)
    except (BadSample, OSError) as error:
        place = int(source.kept[shard][index])
        raise unreadable(source, source.shards[shard], place, error) from error
    view = part.view(record)
    return sample, view.turn, None if view.target == NO_PICTURE else view.target
