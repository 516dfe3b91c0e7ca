"""The data of a run, for Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from m2chat.data.augment import Augmentation
from m2chat.data.collate import Collator
from m2chat.data.dataset import Source, SourceConfig
from m2chat.data.eval_stream import EvalStream
from m2chat.data.feature_batches import FeatureCollator
from m2chat.data.feature_cache import READING, STAGES, FeatureCache, FeatureOrigin, caches, chosen_cache
from m2chat.data.feature_prints import data_print, settings_of
from m2chat.data.images import load_scaled
from m2chat.data.leak import prints_of_sources, refuse_leaks
from m2chat.data.loader import Skips, StreamLoader
from m2chat.data.network_inputs import VisionInput, drawn_size
from m2chat.data.opening import is_read_in_sequence, refuse_overlap, require_sources, without
from m2chat.data.progress import DataPlace, KeepsCount
from m2chat.data.remote import CACHE
from m2chat.data.sequential import SequentialSource
from m2chat.data.stream import ShardStream
from m2chat.errors import UserError
from m2chat.ranges import check_number
from m2chat.text import CaptionTokens, Layout, M2ChatTokenizer
from m2chat.text.prompts import PromptFormat

_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


class M2ChatDataModule(LightningDataModule):
    """Conversations from shards, mixed by weight for training, each reply once for evaluation.

    Args:
        train: Sources to train on.
        val: Sources to validate on.
        test: Sources to test on.
        leave_out: Names of sources in `train` to leave out.
        language_model: Folder of the language model, for its tokenizer. This setting, the next two and
            `num_image_tokens` follow the model's backbone; where there is no model, they must be given.
        vision_encoder: open_clip folder, or name of an open_clip model.
        image_decoder: diffusers folder, or SDXL in one file.
        batch_size: Conversations per training batch, on each rank.
        eval_batch_size: Replies per evaluation batch, on each rank.
        samples_per_epoch: Conversations per epoch, over all ranks; all of the sources by default.
        num_workers: Reading processes of each rank; 0 reads in the training process.
        num_image_tokens: N, the number of ``<|img|>`` tokens of a picture.
        max_tokens: Maximum length of a sequence, prompt and reply together; evaluation and checkpoints take it over.
        prompt: Format of the prompts: ``alpaca``, LLaMA-Adapter's; ``chat``, the language model's own chat template;
            ``auto`` for the template where its folder has one. Evaluation and checkpoints take it over.
        image_size: Side of the pictures to draw, in pixels; None for the side that the image decoder was trained on.
        seed: Seed of the order, and of the choice of the reply that is learned.
        val_samples: Number of replies to validate on, spread evenly over the sources; all by default.
        test_samples: Number of replies to test on, likewise.
        test_draw: Seed of a random draw of `test_samples` instead, such as COCO's 30,000.
        check_leaks: Whether to refuse samples to validate or test on that also occur in training; ``words`` compares
            their ids and texts alone, for conversations that talk about the same pictures in training and outside it.
        random_crop: Whether training takes the square of a target picture from a random position; evaluation takes the
            middle. The crop conditions SDXL either way.
        flip: Probability with which training mirrors a target picture, unless the sample's text names sides.
        length_bucketing: Number of batches among which training brings sequences of like length together, so that less
            is padded; 100 is a good value for conversations, 0 leaves the order as it is.
        scaled_decoding: Whether training decodes JPEGs at 1/2, 1/4 or 1/8 of their size where that is enough: faster
            for large pictures, whose pixels differ a little then.
        prefetch_factor: Batches that each reading process prepares ahead. With a GPU they wait in pinned memory.
        max_bad_share: Share of bad samples above which the run stops; judged from 200 samples on.
        cache_dir: Folder for indices of remote or read-only shards and the output of ``pipe:``.
        features: Folder of a feature cache (`m2chat data features`), from which stages 1 and 2 train without loading
            the networks whose outputs it has: the same samples in the same order. ``auto`` takes one under
            ``data/features`` that fits, or none.
        global_batch: Number of samples of an optimiser step, of all devices together: as many batches are accumulated
            as that takes, and a run that cannot have it is refused. None takes what comes out.
    """

    def __init__(
        self,
        train: list[SourceConfig] | None = None,
        val: list[SourceConfig] | None = None,
        test: list[SourceConfig] | None = None,
        leave_out: list[str] | None = None,
        language_model: str | None = None,
        vision_encoder: str | None = None,
        image_decoder: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 50,
        samples_per_epoch: int | None = None,
        num_workers: int = 0,
        num_image_tokens: int | None = None,
        max_tokens: int = Layout.max_tokens,
        image_size: int | None = None,
        seed: int = 0,
        val_samples: int | None = None,
        test_samples: int | None = None,
        test_draw: int | None = None,
        check_leaks: bool | Literal["words"] = True,
        random_crop: bool = False,
        flip: float = 0.0,
        length_bucketing: int = 0,
        prefetch_factor: int = 2,
        max_bad_share: float = 0.05,
        cache_dir: str = CACHE,
        prompt: PromptFormat = "auto",
        features: str | None = None,
        scaled_decoding: bool = False,
        global_batch: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, kind in (
            ("flip", flip, "share"), ("max_bad_share", max_bad_share, "share"),
            ("batch_size", batch_size, "batch_size"), ("eval_batch_size", eval_batch_size, "batch_size"),
            ("samples_per_epoch", samples_per_epoch, "samples"), ("val_samples", val_samples, "samples"),
            ("test_samples", test_samples, "samples"), ("num_workers", num_workers, "num_workers"),
            ("num_image_tokens", num_image_tokens, "num_image_tokens"), ("max_tokens", max_tokens, "max_tokens"),
            ("image_size", image_size, "image_size"), ("length_bucketing", length_bucketing, "length_bucketing"),
            ("prefetch_factor", prefetch_factor, "prefetch_factor"), ("global_batch", global_batch, "batch_size"),
        ):  # fmt: skip
            if value is not None:
                check_number(f"data.{name}", value, kind)
        self.configs = {"train": without(train or [], leave_out or []), "val": val or [], "test": test or []}
        self.language_model, self.vision_encoder, self.image_decoder = language_model, vision_encoder, image_decoder
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.samples_per_epoch, self.num_workers, self.seed = samples_per_epoch, num_workers, seed
        self.num_image_tokens, self.max_tokens, self.image_size = num_image_tokens, max_tokens, image_size
        self.prompt: PromptFormat = prompt
        self.limits = {"val": val_samples, "test": test_samples}
        self.test_draw = test_draw
        self.check_leaks = check_leaks
        self.augmentation = Augmentation(random_crop, flip)
        self.length_bucketing, self.prefetch_factor = length_bucketing, prefetch_factor
        self.max_bad_share, self.cache_dir = max_bad_share, cache_dir
        self.skips = {split: Skips(max_bad_share) for split in self.configs}
        """Skipped samples of each split."""
        self.allow_zero_length_dataloader_with_multiple_devices = True  # Few replies, many ranks: some get none.
        self._place = DataPlace(self)
        self._keeps_count = KeepsCount(self._place)
        self._collator: Collator | None = None
        self.features, self.scaled_decoding, self.global_batch = features, scaled_decoding, global_batch
        self._cache: FeatureCache | None = None

    def prepare_data(self) -> None:
        """Generates the shards of generated worlds on first use, indexes what has no index yet, and refuses leaks."""
        function = self.trainer.state.fn if self.trainer else None
        if function is not None:
            require_sources(self.configs, function.value)
        for config in (config for configs in self.configs.values() for config in configs):
            config.generate()
        for split in _SPLITS.get(function.value, ()) if function else ():
            self._open(split)
        if self.check_leaks and self.configs["train"]:
            refuse_overlap(self.configs)
            indexed = [source for source in self._open("train") if isinstance(source, Source)]
            refuse_leaks(indexed, self._held_out(), self.check_leaks != "words")

    def _held_out(self) -> dict[str, list[Source]]:
        """The sources to evaluate on."""
        return {split: self._open_indexed(split) for split in ("val", "test")}

    def setup(self, stage: str) -> None:
        """Starts a training at the beginning of the data; a checkpoint is loaded after this."""
        if self.trainer is not None:
            require_sources(self.configs, stage)
        if stage != "fit":
            return
        self._place.begin()
        if self._keeps_count not in self._callbacks():
            self._callbacks().insert(0, self._keeps_count)

    def teardown(self, stage: str) -> None:
        """Leaves the trainer, which may go on to other data."""
        if self._keeps_count in self._callbacks():
            self._callbacks().remove(self._keeps_count)

    @property
    def collator(self) -> Collator:
        """The collator of this run."""
        if self._collator is None:
            language_model, vision_encoder = self._required("language_model"), self._required("vision_encoder")
            image_decoder = self._required("image_decoder")
            tokenizer = M2ChatTokenizer(language_model)
            layout = Layout(tokenizer, self._required("num_image_tokens"), self.max_tokens, self.prompt)
            size = self.image_size or drawn_size(Path(image_decoder))
            captions, vision = CaptionTokens(image_decoder), VisionInput.of(vision_encoder)
            self._collator = Collator(layout, captions, vision, size, self.augmentation)
        return self._collator

    def _required(self, name: str) -> Any:
        if (value := getattr(self, name)) is None:
            raise UserError(f"data.{name} is not set: give the model a backbone, which the data follow, or set it")
        return value

    def open_features(self, stage: str, networks: Mapping[str, str], layers: Sequence[int]) -> FeatureCache | None:
        """The feature cache to train from; the module calls this before it builds its model.

        Args:
            stage: Stage that trains.
            networks: Fingerprint of each network of the run.
            layers: Layers of the language model that the M³Adapter reads.

        Returns:
            None if the run is to compute the features.

        Raises:
            UserError: If there is none, it is not finished, or it is of something else.
        """
        if self.features is None:
            return None
        if self.augmentation != Augmentation():
            raise UserError(
                f"data.features={self.features!r} has one crop of each picture, the middle: set data.random_crop to "
                "false and data.flip to 0, or train without data.features"
            )
        if stage not in STAGES:
            raise UserError(f"data.features={self.features!r}: stage {stage!r} has no feature cache, leave it out")
        if self.features == "auto" and not caches():  # nothing need be indexed to say so
            return None
        parts = {name: data_print(source) for name, source in self.cached_sources(stage, self.validates).items()}
        run = FeatureOrigin(stage, networks, settings_of(self.collator, stage, layers), parts)
        self._cache = chosen_cache(self.features, run)
        return self._cache

    @property
    def validates(self) -> bool:
        """Whether the training validates."""
        return bool(self.configs["val"]) and (self.trainer is None or self.trainer.limit_val_batches != 0)

    def cached_sources(self, stage: str, validates: bool) -> dict[str, Source]:
        """The sources of a training whose features a cache has, by the names of its parts.

        Args:
            stage: Stage that trains; stage 2 validates with all of its networks but the text encoders.
            validates: Whether the training validates.

        Raises:
            UserError: If two sources of a split have the same name.
        """
        sources: dict[str, Source] = {}
        for split in ("train", "val") if validates and stage == READING else ("train",):
            for source in self._open_indexed(split):
                name = f"{split}/{source.name}"
                if split == "train" and source.config.weight <= 0:
                    continue
                if name in sources:
                    raise UserError(f"data.{split} has two sources {source.name!r}: a feature cache needs two names")
                sources[name] = source
        return sources

    def train_dataloader(self) -> StreamLoader:
        """Training batches; every iteration is an epoch, or the rest of one after resuming."""
        if self.features not in (None, "auto") and self._cache is None:
            raise UserError(f"data.features={self.features!r}: stages 1 and 2 alone train from a feature cache")
        refuse_overlap(self.configs)
        sources = self._open("train")
        if self.scaled_decoding:
            for source in sources:
                source.load = partial(load_scaled, side=max(self.collator.image_size, self.collator.vision.size))
        in_sequence = [source for source in sources if isinstance(source, SequentialSource)]
        if in_sequence and self.check_leaks:
            evaluated = [source for sources in self._held_out().values() for source in sources]
            held_out = prints_of_sources(evaluated, self.check_leaks != "words")
            for source in in_sequence:
                source.held_out = held_out
        order = self.seed, self.samples_per_epoch, *_rank_of_ranks(), self.length_bucketing, self.num_workers
        stream = ShardStream(sources, self.batch_size, *order)
        self._place.open(stream)
        if in_sequence and (readings := stream.readings(self.num_workers)) > 1:
            rank_zero_warn(
                f"every shard is read by {readings:.1f} processes: the run was begun with {stream.lanes.count} "
                f"lanes and batch_size {stream.lanes.block}, which ranks, num_workers and batch_size do not fit; "
                "the samples are the same"
            )
        return self._loader("train", stream, self._place.seek, self._place.hand_out)

    def val_dataloader(self) -> StreamLoader | list[Any]:
        """Batches of every reply to validate on, once."""
        return self._eval_loader("val")

    def test_dataloader(self) -> StreamLoader | list[Any]:
        """Batches of every reply to test on, once."""
        return self._eval_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """The place in the training data."""
        return self._place.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a run stopped."""
        self._place.restore(state_dict)

    def _callbacks(self) -> list[Any]:
        """The trainer's, to change."""
        return self.trainer.callbacks if self.trainer is not None else []  # type: ignore[attr-defined]

    def _open(self, split: str) -> list[Source | SequentialSource]:
        skips = self.skips[split] = Skips(self.max_bad_share)
        sources: list[Source | SequentialSource] = []
        for config in self.configs[split]:
            features = None if self._cache is None and self.features == "auto" else self.features
            if is_read_in_sequence(config, split, self.samples_per_epoch, self.length_bucketing, features):
                sources.append(SequentialSource(config, split, self.cache_dir))
            else:
                sources.append(self._open_source(config, split, skips))
        return sources

    def _open_indexed(self, split: str) -> list[Source]:
        """The sources of a split with the index of each, as evaluation and feature caches need them."""
        skips = self.skips[split] = Skips(self.max_bad_share)
        if split != "train":
            for config in self.configs[split]:  # refuses what evaluation cannot read
                is_read_in_sequence(config, split, None, 0, None)
        return [self._open_source(config, split, skips) for config in self.configs[split]]

    def _open_source(self, config: SourceConfig, split: str, skips: Skips) -> Source:
        source = Source(config, split, self.cache_dir, max(1, self.num_workers))
        skips.add(source)
        name = f"{split}/{config.name}"
        if self._cache is not None and name in self._cache.manifest.origin.parts:
            source.features = self._cache.part(name)
        return source

    def _eval_loader(self, split: str) -> StreamLoader | list[Any]:
        sources = self._open_indexed(split)
        if not sources:
            return []
        draw = self.test_draw if split == "test" else None
        stream = EvalStream(sources, self.eval_batch_size, self.limits[split], *_rank_of_ranks(), draw=draw)
        return self._loader(split, stream)

    def _loader(self, split: str, stream: ShardStream | EvalStream, *hooks: Callable[[], None]) -> StreamLoader:
        collator: Collator | FeatureCollator = self.collator
        indexed = [source for source in stream.sources if isinstance(source, Source)]
        if any(source.features is not None for source in indexed):
            alone = split == "train" and all(s.features is None or s.features.form.whole for s in indexed)
            collator = FeatureCollator.of(indexed, None if alone else self.collator)
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        skips = self.skips[split]
        return StreamLoader(stream, collator, skips, self.num_workers, self.prefetch_factor, pin, *hooks)


def _rank_of_ranks() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
