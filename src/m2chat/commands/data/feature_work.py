"""The work of `m2chat data features`: batches of samples through the frozen networks into the files of a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from m2chat.batch import Batch
from m2chat.data.collate import Collator
from m2chat.data.datamodule import M2ChatDataModule
from m2chat.data.dataset import Source
from m2chat.data.feature_cache import READING, FeatureManifest, FeatureOrigin, folder_of
from m2chat.data.feature_file import FeaturePart
from m2chat.data.feature_form import Form, Index
from m2chat.data.feature_plan import source_item
from m2chat.data.feature_prints import data_print, settings_of
from m2chat.models.absent import Absent
from m2chat.models.blank import blank_m2chat
from m2chat.models.build import composed, load_clip, load_reader
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.trainable import set_trainable


def manifest_of(
    module: Any,
    data: M2ChatDataModule,
    sources: Mapping[str, Source],
    dtype: str,
    text: bool = True,
    chunk: int = 1024,
    batch: int = 32,
) -> FeatureManifest:
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
    decoder, layers, whole = model.decoder, module.m3adapter.layers, module.stage == READING
    side = data.collator.image_size // decoder.vae_factor
    form = Form(
        dtype,
        text,
        len(layers) if whole else 1,
        int(model.llama.config.hidden_size) if whole else model.clip.width,
        decoder.queries,
        decoder.sequence_width,
        decoder.pooled_width,
        (int(decoder.vae.config.latent_channels), side, side),
        whole,
    )
    needed = {"vision_encoder", "channel_order", "vae"} | ({"language_model", "adapter"} if whole else set())
    needed |= {"text_encoder", "text_encoder_2"} if text else set()
    networks = {name: value for name, value in module.backbones().outputs.items() if name in needed}
    prints = {name: data_print(source) for name, source in sources.items()}
    origin = FeatureOrigin(module.stage, networks, settings_of(data.collator, module.stage, layers), prints)
    return FeatureManifest(origin, form, model.clip.width, chunk, batch)


def tokens_of_a_picture(module: Any) -> int:
    """Number of CLIP tokens of a picture, by the description of the vision encoder."""
    model, _ = blank_m2chat(module.backbone, module.m3adapter)
    visual: Any = model.clip.visual
    return len(visual.positional_embedding)


def parts_of(out: Path, manifest: FeatureManifest, indices: Mapping[str, Index]) -> dict[str, FeaturePart]:
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


class FeatureWork(Dataset[tuple[Stretch, Batch]]):
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


def _reader(module: Any, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """What reads, as far as its outputs are kept: of stage 2, CLIP alone."""
    if module.stage == READING:
        return load_reader(module.backbone, dtype)
    language = Absent("language model", config=SimpleNamespace(hidden_size=1))
    return language, Absent("visual query"), load_clip(module.backbone, dtype)


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
        # In fp32, as the VAE's encoder is in training; what is lowered there is lowered here.
        decoder = ImageDecoder(backbone.image_decoder, torch.float32, backbone.decoder, ("unet",))
        model = composed(module.m3adapter, *_reader(module, dtype), decoder)
        set_trainable(model, set())
        self._autocast = module.prepare_precision(model, precision)
        self.model: M2ChatModel = model.to(self.device).eval()

    def write(self, work: FeatureWork, workers: int) -> Iterator[int]:
        """Computes and writes.

        Args:
            work: The work.
            workers: Processes that read and tokenise; 0 reads here.

        Yields:
            Number of records, after each batch.
        """
        if not all(part.form.whole for part in self.parts.values()):
            self.write_blanks()
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
        form, model = part.form, self.model
        with self._scope():
            e_clip, e_pclip = None, None
            if form.text:
                e_clip, e_pclip = model.decoder.encode_text(batch.caption_ids, batch.caption_ids_2)
            latents = model.decoder.encode_pixels(batch.target_pixels)
            if form.whole:
                values = self._states(batch)
            else:
                values = model.clip(batch.context_pixels[batch.has_context]).flatten(0, 1)[:, None]
        records = np.zeros(len(batch), form.record)
        records["time_ids"] = batch.time_ids.cpu().numpy()
        records["latents"] = _numbers(latents)
        if e_clip is not None:
            form.put(records, "e_clip", _numbers(e_clip))
            if e_pclip is not None:
                records["e_pclip"] = _numbers(e_pclip)
        else:
            records["caption_ids"] = batch.caption_ids.cpu().numpy()
            records["caption_ids_2"] = batch.caption_ids_2.cpu().numpy()
        count = sum(part.view(record).rows for record in stretch.records)
        assert len(values) == count, f"{stretch}: {len(values)} tokens, and its index has {count}"
        return records, self._rows(form, values)

    def _states(self, batch: Batch) -> Tensor:
        """States at caption and image tokens, one sample behind the other, (rows, L, D)."""
        states, _, _ = self.model.read(batch.input_ids, batch.context_pixels[:1], batch.located())
        layers = states if states.ndim == 4 else states[None]  # (L, B, T, D)
        return layers.permute(1, 2, 0, 3)[batch.caption_mask | batch.image_mask]

    @torch.no_grad()
    def write_blanks(self) -> None:
        """Writes, for stage 2, the CLIP tokens of an empty picture into every part."""
        visual: Any = self.model.clip.visual
        side = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
        with self._scope():
            tokens = self.model.clip(torch.zeros(1, 3, *side, device=self.device))[0][:, None]
        for part in self.parts.values():
            part.write_blank(self._rows(part.form, tokens))

    @staticmethod
    def _rows(form: Form, values: Tensor) -> Any:
        rows = np.zeros(len(values), form.row)
        form.put(rows, "values", _numbers(values))
        return rows

    def _scope(self) -> AbstractContextManager[Any]:
        """Autocast as in training."""
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, self._autocast)


def _numbers(values: Tensor) -> Any:
    return values.float().cpu().numpy()
