"""The work of `m2chat data features`: batches of samples through the frozen networks into the files of a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from m2chat.data.collate import Collator
from m2chat.data.datamodule import M2ChatDataModule
from m2chat.data.dataset import Source
from m2chat.data.feature_cache import Manifest, Origin, data_print, folder_of, settings_of, source_item
from m2chat.data.feature_file import FeaturePart, Form, Index
from m2chat.models.blank import blank_m2chat
from m2chat.models.build import composed, load_reader
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.trainable import set_trainable
from m2chat.schema import Batch


def manifest_of(
    module: Any,
    data: M2ChatDataModule,
    sources: Mapping[str, Source],
    dtype: str,
    text: bool = True,
    chunk: int = 1024,
    batch: int = 32,
) -> Manifest:
    """The manifest of the features that a configuration asks for; no weight is loaded.

    Args:
        module: `AlignModule`, not built.
        data: Its data.
        sources: Opened sources by the names of their parts.
        dtype: Precision of states and targets.
        text: Whether the targets of the text encoders are kept.
        chunk: Records per file.
        batch: Samples that are computed at once.
    """
    model, _ = blank_m2chat(module.backbone, module.m3adapter)
    decoder, layers = model.decoder, module.m3adapter.layers
    side = data.collator.image_size // decoder.vae_factor
    form = Form(
        dtype,
        text,
        len(layers),
        int(model.llama.config.hidden_size),
        decoder.queries,
        decoder.sequence_width,
        decoder.pooled_width,
        (int(decoder.vae.config.latent_channels), side, side),
    )
    needed = {"language_model", "adapter", "vision_encoder", "channel_order", "vae"}
    needed |= {"text_encoder", "text_encoder_2"} if text else set()
    networks = {name: value for name, value in module.backbones().components.items() if name in needed}
    prints = {name: data_print(source) for name, source in sources.items()}
    origin = Origin(module.stage, networks, settings_of(data.collator, layers), prints)
    return Manifest(origin, form, model.clip.width, chunk, batch)


def parts_of(out: Path, manifest: Manifest, indices: Mapping[str, Index]) -> dict[str, FeaturePart]:
    """The parts of a cache, to be written."""
    return {
        name: FeaturePart(out / folder_of(name), manifest.form, manifest.chunk, index)
        for name, index in indices.items()
    }


class Stretch(NamedTuple):
    """Records that are computed at once.

    Args:
        part: Name of the part.
        chunk: Number of the chunk.
        records: Records of the part.
    """

    part: str
    chunk: int
    records: range


class Work(Dataset[tuple[Stretch, Batch]]):
    """Batches of the chunks to compute; it can be sent to worker processes.

    Args:
        sources: Sources by the names of their parts.
        parts: Parts, whose indices say what the records are.
        collator: Collator of the run.
        chunks: Part and number of each chunk.
        batch: Records of a batch; every chunk begins with a new one, so that its bytes depend on nothing else.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        parts: Mapping[str, FeaturePart],
        collator: Collator,
        chunks: Sequence[tuple[str, int]],
        batch: int,
    ) -> None:
        self.sources, self.parts, self.collator = sources, parts, collator
        self.stretches = [
            Stretch(name, chunk, records[start : start + batch])
            for name, chunk in chunks
            for records in [parts[name].records(chunk)]
            for start in range(0, len(records), batch)
        ]

    @property
    def samples(self) -> int:
        """Number of records to compute."""
        return sum(len(stretch.records) for stretch in self.stretches)

    def __len__(self) -> int:
        return len(self.stretches)

    def __getitem__(self, number: int) -> tuple[Stretch, Batch]:
        stretch = self.stretches[number]
        source, part = self.sources[stretch.part], self.parts[stretch.part]
        return stretch, self.collator.compact([source_item(source, part, record) for record in stretch.records])


def _as_it_is(item: Any) -> Any:
    """Leaves a batch alone; the loader's default would take ranges apart."""
    return item


class Writer:
    """The frozen networks, and the files that their outputs go to.

    Args:
        module: `AlignModule`, not built; its networks are loaded without the UNet.
        precision: The trainer's: the networks compute as they would in training.
        device: Device; None for a GPU where there is one.
        parts: Parts by name.
    """

    def __init__(self, module: Any, precision: str, device: str | None, parts: Mapping[str, FeaturePart]) -> None:
        self.parts = parts
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        backbone = module.backbone
        dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        decoder = ImageDecoder(backbone.image_decoder, dtype, backbone.decoder, ("unet",))
        model = composed(module.m3adapter, *load_reader(backbone, dtype), decoder)
        set_trainable(model, set())
        self._autocast = module.prepare_precision(model, precision)
        self.model: M2ChatModel = model.to(self.device).eval()

    def write(self, work: Work, workers: int) -> Iterator[int]:
        """Computes and writes.

        Args:
            work: The work.
            workers: Processes that read and tokenise; 0 reads here.

        Yields:
            Number of records, after each batch.
        """
        loader: DataLoader[Any] = DataLoader(work, batch_size=None, collate_fn=_as_it_is, num_workers=workers)
        records: list[Any] = []
        rows: list[Any] = []
        for stretch, batch in loader:
            part = self.parts[stretch.part]
            computed = self._compute(part, stretch, batch.to(self.device))
            records.append(computed[0])
            rows.append(computed[1])
            if stretch.records.stop == part.records(stretch.chunk).stop:
                part.write(stretch.chunk, np.concatenate(records), np.concatenate(rows))
                records, rows = [], []
            yield len(stretch.records)

    @torch.no_grad()
    def _compute(self, part: FeaturePart, stretch: Stretch, batch: Batch) -> tuple[Any, Any]:
        """Records of a stretch, and their rows."""
        form = part.form
        scope: AbstractContextManager[Any] = nullcontext()
        if self._autocast is not None:
            scope = torch.autocast(torch.device(self.device).type, self._autocast)
        with scope:
            features = self.model.frozen_features(batch, with_text=form.text)
        records = np.zeros(len(batch), form.record)
        records["time_ids"] = batch.time_ids.cpu().numpy()
        assert features.latents is not None
        records["latents"] = features.latents.float().cpu().numpy()
        if form.text:
            assert features.e_clip is not None
            form.put(records, "e_clip", features.e_clip.float().cpu().numpy())
            if features.e_pclip is not None:
                records["e_pclip"] = features.e_pclip.float().cpu().numpy()
        else:
            records["caption_ids"] = batch.caption_ids.cpu().numpy()
            records["caption_ids_2"] = batch.caption_ids_2.cpu().numpy()
        states = features.states if features.states.ndim == 4 else features.states[None]  # (L, B, T, D)
        read = batch.caption_mask | batch.image_mask
        counts = [part.view(record).rows for record in stretch.records]
        assert read.sum(1).tolist() == counts, f"{stretch}: other tokens than its index has"
        rows = np.zeros(sum(counts), form.row)
        form.put(rows, "states", states.permute(1, 2, 0, 3)[read].float().cpu().numpy())
        return records, rows
