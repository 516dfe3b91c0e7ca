"""A feature cache: outputs of the frozen networks for every sample of a run, in place of the networks.

`m2chat data features` writes it, ``data.features`` trains from it. Its manifest has the fingerprints of everything that
the outputs depend on; a run with other networks, another layout or other data is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2chat.data.collate import Collator
from m2chat.data.dataset import Source
from m2chat.data.feature_file import INDEX, NO_PICTURE, FeaturePart, FeatureView, Form, Index
from m2chat.data.index import Shard
from m2chat.data.peek import peek
from m2chat.data.sources import BadSample
from m2chat.data.stream import Item
from m2chat.errors import UserError
from m2chat.files import locked, write_whole
from m2chat.schema import Batch, FrozenFeatures, Sample, Segment
from m2chat.text import Layout, view_of
from m2chat.text.view import Request, replies_of

MANIFEST = "features.json"
ROOT = Path("data/features")
"""Folder of the caches among which ``data.features: auto`` chooses."""
VERSION = 1
STAGES = ("align", "m3ft")
READING = "align"
"""Stage whose language model is frozen, so that its states are kept."""
PAIRS = ("caption", "instruct")
"""Kinds whose validation needs no language model: their captions are given."""
_LOOKS = 16
"""Samples whose bytes are part of a source's fingerprint."""


@dataclass(frozen=True)
class FeatureOrigin:
    """What the features of a run depend on.

    Args:
        stage: Stage that trains from them.
        networks: Fingerprint of each network.
        settings: Settings of the data and of the model.
        parts: For each part ``<split>/<source>``, the fingerprint of its data.
    """

    stage: str
    networks: Mapping[str, str]
    settings: Mapping[str, Any]
    parts: Mapping[str, str]

    def misfits(self, run: FeatureOrigin) -> list[str]:
        """What of a run these features do not fit, in words: a run may have more networks and fewer data."""
        misfits = [] if self.stage == run.stage else [f"the stage ({self.stage!r}, now {run.stage!r})"]
        misfits += [f"the {name}" for name, value in self.networks.items() if run.networks.get(name) != value]
        misfits += [
            f"{name} ({value}, now {run.settings.get(name)})"
            for name, value in self.settings.items()
            if run.settings.get(name) != value
        ]
        return misfits + [
            f"the data of {name}" + ("" if name in self.parts else " (not in the cache)")
            for name, value in run.parts.items()
            if self.parts.get(name) != value
        ]


@dataclass(frozen=True)
class FeatureManifest:
    """What a cache is.

    Args:
        origin: What its features depend on.
        form: Form of the records.
        clip_width: W, width of the vision encoder's tokens.
        chunk: Records per chunk.
        batch: Samples that were computed at once: with another number the last bits differ.
        version: Version of the layout.
    """

    origin: FeatureOrigin
    form: Form
    clip_width: int
    chunk: int
    batch: int
    version: int = VERSION

    def text(self) -> str:
        """The manifest as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> FeatureManifest:
        """The manifest of a cache.

        Raises:
            UserError: If there is none, or it is damaged or of another version.
        """
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if content["version"] != VERSION:
                raise UserError(
                    f"{folder} is a feature cache of version {content['version']}, and this program reads {VERSION}: "
                    "build it again with `m2chat data features`"
                )
            origin, form = FeatureOrigin(**content.pop("origin")), content.pop("form")
            return cls(origin, Form(**{**form, "latents": tuple(form["latents"])}), **content)
        except FileNotFoundError:
            raise UserError(
                f"data.features={str(folder)!r} is no feature cache: make one with "
                f"`m2chat data features --config CONFIG {folder}`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / MANIFEST} is damaged ({error}): remove {folder}, and build it again") from error


class FeatureCache:
    """A cache on disk.

    Args:
        folder: Its folder.

    Raises:
        UserError: If there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, FeatureManifest.read(folder)

    @property
    def sizes(self) -> dict[str, Any]:
        """What a model must know of the networks that it does without: arguments of `m2chat.models.absent.Kept`."""
        form = self.manifest.form
        return {
            "width": form.width,
            "clip_width": self.manifest.clip_width,
            "text": form.text,
            "reading": form.whole,
        }

    def part(self, name: str) -> FeaturePart:
        """The records of ``<split>/<source>``.

        Raises:
            UserError: If some have not been written yet.
        """
        part = FeaturePart(self.folder / folder_of(name), self.manifest.form, self.manifest.chunk)
        if missing := part.missing():
            raise UserError(
                f"data.features={str(self.folder)!r} is not finished: {len(missing)} of {len(part.chunks)} files of "
                f"{name} are missing, the first is {part.path(missing[0])}; run the same `m2chat data features` "
                "again, which goes on"
            )
        return part


def fitting_cache(folder: Path, run: FeatureOrigin) -> FeatureCache:
    """The cache in a folder, if a run can train from it.

    Raises:
        UserError: If it is not finished, or is of something else; names what differs.
    """
    cache = FeatureCache(folder)
    if misfits := cache.manifest.origin.misfits(run):
        raise UserError(
            f"data.features={str(folder)!r} was made for other inputs than this run's: {', '.join(misfits)}. Make "
            "another with `m2chat data features` and this run's configuration, undo the change, or train without "
            "data.features"
        )
    for name in run.parts:
        cache.part(name)
    return cache


def is_other(folder: Path, manifest: FeatureManifest) -> bool:
    """Whether a folder holds a cache, perhaps a damaged one, that is not the one of a manifest."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        return FeatureManifest.read(folder).text() != manifest.text()
    except UserError:
        return True


def create(folder: Path, manifest: FeatureManifest, indices: Mapping[str, Index]) -> None:
    """Makes a cache without records, or makes sure that the one that is there is the same.

    Several processes may call it at once.

    Args:
        folder: Folder of the cache.
        manifest: Its manifest.
        indices: Index of each part.

    Raises:
        UserError: If the folder has something else in it, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / MANIFEST):
            if (folder / MANIFEST).is_file():
                there = FeatureManifest.read(folder)
                if there.text() == manifest.text():
                    return
                other = "other sources or options (--dtype, --text, --batch, --chunk)"
                reasons = there.origin.misfits(manifest.origin) or [other]
                raise UserError(
                    f"{folder} is a feature cache of something else: {', '.join(reasons)}; name a new folder, or "
                    "have it made anew with --replace"
                )
            if any(path.name[0] != "." for path in folder.iterdir()):
                raise UserError(f"{folder} is no feature cache and has something in it: name a new folder")
            for name, index in indices.items():
                (folder / folder_of(name)).mkdir(parents=True, exist_ok=True)
                index.write(folder / folder_of(name) / INDEX)
            write_whole(folder / MANIFEST, [manifest.text()])
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}; make room or name another place") from error


def folder_of(part: str) -> str:
    """Name of the folder of a part; two sources never get the same."""
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in part)
    return plain if plain == part.replace("/", "-") else f"{plain}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"


# Fingerprints


def settings_of(collator: Collator, stage: str, layers: Sequence[int]) -> dict[str, Any]:
    """Settings on which the outputs depend, beside networks and data.

    Args:
        collator: Collator of the run.
        stage: Stage that trains.
        layers: Layers of the language model that the M³Adapter reads.
    """
    layout = collator.layout
    settings = {
        "data.image_size": collator.image_size,
        "tokens of captions": _digest(repr([ids.tolist() for ids in collator.captions(["a red circle"])])),
    }
    if stage != READING:
        return {**settings, "input of the vision encoder": repr(collator.vision)}
    return {
        **settings,
        "data.max_tokens": layout.max_tokens,
        "num_image_tokens": layout.num_image_tokens,
        "m3adapter.layers": list(layers),
        "prompts": _prompts(layout),
    }


def _prompts(layout: Layout) -> str:
    """A fingerprint of format, template and tokenizer: a sequence with every part that one can have."""
    reply = [Segment("Here it is.", "a red circle, 3 blue squares"), Segment("Done.")]
    whole = replace(layout, max_tokens=10_000)
    encoded = whole.encode(Request("Draw a red circle!", ("User: hello", "Assistant: hello")), reply)
    return _digest(repr((encoded.input_ids, encoded.caption, encoded.image)))


def data_print(source: Source) -> str:
    """A fingerprint of a source's samples: their names, places and sizes, and the bytes of some of them.

    Raises:
        UserError: If one of those cannot be read.
    """
    digest = hashlib.sha256()
    for shard, kept in zip(source.shards, source.kept, strict=True):
        digest.update(shard.entries.lines)
        digest.update(np.ascontiguousarray(kept).tobytes())
    places = [(shard, int(place)) for shard, kept in enumerate(source.kept) for place in _spread(kept, _LOOKS)]
    for shard, place in _spread(places, _LOOKS):
        try:
            for suffix, data in source.shards[shard].members(place).items():
                digest.update(suffix.encode())
                digest.update(data)
        except (BadSample, OSError) as error:
            raise _unreadable(source, source.shards[shard], place, error) from error
    return digest.hexdigest()[:16]


def _spread(values: Any, count: int) -> list[Any]:
    """Some of the values, spread evenly."""
    return [values[k * len(values) // count] for k in range(count)] if len(values) > count else list(values)


def _unreadable(source: Source, shard: Shard, place: int, error: Exception) -> UserError:
    return UserError(
        f"source {source.name!r}: sample {shard.entries[place].key!r} of {shard.path} was good when it was indexed and "
        f"cannot be read any more ({error}): repair the shard"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# What to compute


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
                raise _unreadable(source, shard, place, error) from error
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
        raise _unreadable(source, source.shards[shard], place, error) from error
    view = part.view(record)
    return sample, view.turn, None if view.target == NO_PICTURE else view.target


# Batches


@dataclass(frozen=True)
class FeatureCollator:
    """Makes batches from kept features; it can be sent to worker processes.

    Args:
        parts: Records of each source, in the stream's order.
        starts: For each source, number of its kept samples before each shard.
        collator: Collator of the samples, for stage 2, and for validation, which shows the reference pictures; None to
            train stage 1, which needs neither words nor pictures.
    """

    parts: Sequence[FeaturePart]
    starts: Sequence[Sequence[int]]
    collator: Collator | None = None

    @classmethod
    def of(cls, sources: Iterable[Source], collator: Collator | None = None) -> FeatureCollator:
        """The collator of sources whose features are known."""
        known = list(sources)
        parts = [source.features for source in known if source.features is not None]
        return cls(
            parts, [[source.number(shard, 0) for shard in range(len(source.kept))] for source in known], collator
        )

    def compact(self, items: Sequence[Item]) -> Batch:
        """The batch of some replies."""
        places = [self._find(item) for item in items]
        form = self.parts[0].form
        read = [part.read(record) for part, record in places]
        records = np.stack([record for record, _ in read])
        states, mask = _states(form, [rows for _, rows in read])
        if form.whole and self.collator is not None:
            batch = self.collator.compact(items)
            batch.features = FrozenFeatures(states, None, None, None, mask)
            return batch
        features = FrozenFeatures(
            states if form.whole else None,
            _tensor(form.get(records, "e_clip")) if form.text else None,
            torch.from_numpy(records["e_pclip"].copy()) if form.text and form.pooled_width else None,
            torch.from_numpy(records["latents"].copy()),
            mask if form.whole else None,
            None if form.whole else states,
        )
        if self.collator is not None:
            batch = self.collator.compact(items)
            batch.features = features
            return batch
        count = len(items)
        no, nothing = torch.zeros(count, dtype=torch.bool), torch.zeros(count, 0, dtype=torch.bool)
        captions = [
            nothing.long() if form.text else torch.from_numpy(records[name].astype(np.int64))
            for name in ("caption_ids", "caption_ids_2")
        ]
        has_target = torch.tensor([part.view(record).target != NO_PICTURE for part, record in places])
        return Batch(
            input_ids=nothing.long(), attention_mask=nothing, labels=nothing.long(), answer_mask=nothing,
            caption_mask=nothing, image_mask=nothing, context_pixels=torch.zeros(count, 3, 0, 0), has_context=no,
            target_pixels=torch.zeros(count, 3, 0, 0), has_target=has_target,
            time_ids=torch.from_numpy(records["time_ids"].copy()), caption_ids=captions[0], caption_ids_2=captions[1],
            samples=[item.sample for item in items], turns=[item.turn for item in items], cut_tokens=[0] * count,
            features=features,
        )  # fmt: skip

    def _find(self, item: Item) -> tuple[FeaturePart, int]:
        source, shard, index = item.place
        part = self.parts[source]
        return part, part.find(self.starts[source][shard] + index, item.turn, item.target)


def _states(form: Form, rows: Sequence[NDArray[Any]]) -> tuple[Tensor, Tensor]:
    """Rows of several samples, padded with zeros, and the mask of what is no padding."""
    longest = max(map(len, rows))
    whole = np.zeros((len(rows), longest), form.row)
    mask = np.zeros((len(rows), longest), bool)
    for number, each in enumerate(rows):
        whole[number, : len(each)] = each
        mask[number, : len(each)] = True
    states = _tensor(form.get(whole, "values"))  # (B, S, L, D)
    return states[:, :, 0] if form.layers == 1 else states.permute(2, 0, 1, 3), torch.from_numpy(mask)


def _tensor(values: NDArray[Any]) -> Tensor:
    """A tensor of float32, or of the bits of bfloat16."""
    if values.dtype == np.uint16:
        return torch.from_numpy(np.ascontiguousarray(values).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(values))
