"""How well the pocket decoder draws: from true captions, judged by the network that reads pictures and by pixels alone.

Beside every rate stand those of the true pictures and of these after the VAE, which bound it, and how often the nearest
true picture by pixels is the right one. Nothing is picked: what is drawn follows from a seed and the list of captions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m2chat.errors import UserError
from m2chat.evaluation.markup import write_section
from m2chat.worlds.consistency import LORA
from m2chat.worlds.emoji.captions import caption_of
from m2chat.worlds.emoji.judge import PictureJudge, Verdict
from m2chat.worlds.emoji.recipe.drawing import draw, nearest_rates
from m2chat.worlds.emoji.scenes import SIZE, STYLES, Pictures, Scene, core_concepts
from m2chat.worlds.small_sdxl import Conditioner, to_pixels

MARK = "decoder"
"""Name of the marks in a document between which the table stands."""
SETS = {
    "core": "core list, seen",
    "all": "all concepts, seen",
    "pairs": "held-out (concept, style) pairs",
    "combinations": "held-out combinations of attributes",
}
_ATTRIBUTES = ("tone", "hair", "gender")


@dataclass(frozen=True)
class DrawnTruths:
    """Pictures drawn for the exact captions of true ones.

    Args:
        truth: The true pictures.
        pixels: What was drawn, uint8, (B, 64, 64, 3).
        rebuilt: The true pictures after the VAE.
        verdicts: The judge's, of what was drawn.
    """

    truth: Pictures
    pixels: NDArray[np.uint8]
    rebuilt: NDArray[np.uint8]
    verdicts: Sequence[Verdict]

    @property
    def captions(self) -> list[str]:
        """The exact captions."""
        return [caption_of(scene) for scene in self.truth.scenes]


def chosen_pictures(pictures: Pictures, name: str, count: int, styles: Sequence[str], seed: int = 0) -> Pictures:
    """Pictures of one of `SETS`, at most one of each concept and style, drawn by a seed.

    Args:
        pictures: The whole world.
        name: Key of `SETS`.
        count: Number of pictures, fewer if there are fewer.
        styles: Styles that the decoder has learned.
        seed: Seed of the choice.
    """
    split = {"pairs": "pair", "combinations": "combination"}.get(name, "train")
    of = pictures.of(split, styles=styles)  # type: ignore[arg-type]
    rng, core = random.Random(f"{name}/{seed}"), set(core_concepts())
    order = rng.sample(range(len(of)), len(of))
    wanted = [i for i in order if name != "core" or of.scenes[i].concept in core]
    once = {(of.scenes[i].concept, of.scenes[i].style): i for i in wanted}
    return of.take(rng.sample(sorted(once.values()), min(count, len(once))))


@torch.no_grad()
def draw_truths(
    root: Path,
    judge: PictureJudge,
    truth: Pictures,
    seed: int = 0,
    lora: Path | None = None,
    vae: Path | None = None,
    **settings: Any,
) -> DrawnTruths:
    """Draws the exact captions of true pictures with the saved (averaged) weights.

    Args:
        root: The diffusers folder, of SDXL or SD 1.5.
        judge: The judge.
        truth: The true pictures.
        seed: Seed of the noise.
        lora: Folder of the LoRA that draws in four steps; without it the UNet draws alone.
        vae: Folder of the VAE whose latents the UNet has learned; None for that of `root`.
        settings: As of `draw`: ``steps``, ``guidance``, ``batch``; of no use with a LoRA.

    Raises:
        UserError: If the folder has no UNet yet.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    if not (root / "unet" / "config.json").is_file():
        raise UserError(f"there is no UNet in {root}: `python -m m2chat.worlds.emoji unet` trains it")
    parts: list[Any] = [
        kind.from_pretrained(folder, low_cpu_mem_usage=False).float().eval()
        for kind, folder in ((UNet2DConditionModel, root / "unet"), (AutoencoderKL, vae or root / "vae"))
    ]
    unet, autoencoder = parts
    condition = Conditioner(root, is_xl=(root / "text_encoder_2").is_dir())
    captions = [caption_of(scene) for scene in truth.scenes]
    if lora is None:
        pixels = draw(unet, autoencoder, condition, captions, seed, **settings)
    else:
        pixels = _draw_in_few_steps(root, lora / LORA, vae, condition, captions, seed)
    chunks = [
        autoencoder.decode(autoencoder.encode(c).latent_dist.mean).sample for c in to_pixels(truth.pixels).split(64)
    ]
    rebuilt = torch.cat(chunks).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return DrawnTruths(truth, pixels, rebuilt, judge.read(pixels))


def _draw_in_few_steps(
    root: Path, lora: Path, vae: Path | None, condition: Conditioner, captions: Sequence[str], seed: int
) -> NDArray[np.uint8]:
    """Four steps without guidance, by the decoder that users have."""
    from m2chat.models.decoder_config import DecoderConfig, LoraConfig
    from m2chat.models.denoising import size_ids
    from m2chat.models.image_decoder import ImageDecoder
    from m2chat.pipeline.drawing import to_pictures

    config = DecoderConfig(lora=[LoraConfig(str(lora))], preset="lcm-4", vae=None if vae is None else str(vae))
    decoder = ImageDecoder(root, config=config)
    drawn = []
    for start in range(0, len(captions), 32):
        text, pooled = condition(captions[start : start + 32])
        seeds = range(1000 * seed + start, 1000 * seed + start + len(text))
        drawn += to_pictures(decoder.sample(text, pooled, size_ids(SIZE, SIZE, len(text)), seeds, 4, 1.0))
    return np.stack(drawn)


def rates(verdicts: Sequence[Verdict], scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares that the judge reads right: concept (``top1``, ``top5``), style, and attributes where there are any."""
    pairs = list(zip(verdicts, scenes, strict=True))
    with_attributes = [(v, s) for v, s in pairs if not s.is_plain]
    result = {
        "top1": [v.right({"concept": s.concept})["concept"] for v, s in pairs],
        "top5": [bool(v.seen) and s.concept in v.top for v, s in pairs],
        "style": [v.right({"style": s.style})["style"] for v, s in pairs],
        "attributes": [v.all_right({n: s.attributes[n] for n in _ATTRIBUTES}) for v, s in with_attributes],
    }
    return {name: round(sum(right) / len(right), 4) for name, right in result.items() if right}


def facts_of(drawn: DrawnTruths, judge: PictureJudge, fid: Path | None = None) -> dict[str, object]:
    """Every rate of what was drawn, of the true pictures, and of these after the VAE.

    Args:
        drawn: The pictures.
        judge: The judge.
        fid: Folder of the feature network; without it, or with fewer pictures than features, there is no distance.
    """
    scenes = drawn.truth.scenes
    result: dict[str, object] = {"pictures": len(scenes), **rates(drawn.verdicts, scenes)}
    near = nearest_rates(drawn.pixels, scenes, judge.pictures)
    result |= {f"nearest_{name}": round(near[name], 4) for name in ("top1", "top10")}
    result["true_top1"] = rates(judge.read(drawn.truth.pixels), scenes)["top1"]
    result["vae_top1"] = rates(judge.read(drawn.rebuilt), scenes)["top1"]
    if fid is not None and (fid / "config.json").is_file():
        from m2chat.metrics.extractors import PocketExtractor
        from m2chat.metrics.fid import Moments, frechet_distance

        extractor = PocketExtractor(str(fid))
        if len(scenes) > extractor.num_features:
            kinds = (drawn.truth.pixels, drawn.pixels, drawn.rebuilt)
            true, mine, rebuilt = (Moments.of(extractor.extract(list(pixels))) for pixels in kinds)
            result["fid_pocket"] = round(frechet_distance(true, mine), 3)
            result["vae_fid_pocket"] = round(frechet_distance(true, rebuilt), 3)
    return result


def evaluate(
    root: Path,
    weights: Path,
    pictures: Pictures,
    count: int = 400,
    styles: Sequence[str] = tuple(STYLES),
    **settings: Any,
) -> tuple[dict[str, dict[str, object]], dict[str, DrawnTruths]]:
    """Draws every set of captions and judges it.

    Args:
        root: The diffusers folder.
        weights: Folder with ``judge/`` and, for a Fréchet distance, ``fid/``.
        pictures: The whole world.
        count: Pictures of each set.
        styles: Styles that the decoder has learned.
        settings: As of `draw_truths`.

    Returns:
        Facts by set, and what was drawn.
    """
    judge = PictureJudge.load(weights / "judge", pictures)
    facts, everything = dict[str, dict[str, object]](), dict[str, DrawnTruths]()
    for name in SETS:
        truth = chosen_pictures(pictures, name, count, styles)
        if len(truth):
            everything[name] = draw_truths(root, judge, truth, **settings)
            facts[name] = facts_of(everything[name], judge, weights / "fid")
            print(json.dumps({name: facts[name]}), flush=True)
    return facts, everything


_COLUMNS = {
    "pictures": "pictures",
    "top1": "top-1",
    "top5": "top-5",
    "style": "style",
    "attributes": "attributes",
    "nearest_top1": "nearest by pixels: top-1",
    "nearest_top10": "top-10",
    "vae_top1": "true, through the VAE: top-1",
    "true_top1": "true: top-1",
    "fid_pocket": "fid_pocket",
    "vae_fid_pocket": "fid_pocket of the VAE alone",
}


def table_of(facts: Mapping[str, Mapping[str, object]]) -> str:
    """The facts as a table, shares in per cent."""
    columns = {key: title for key, title in _COLUMNS.items() if any(key in row for row in facts.values())}
    lines = [f"| captions of | {' | '.join(columns.values())} |", "|---|" + "--:|" * len(columns)]
    for name, row in facts.items():
        cells = [_cell(key, row.get(key)) for key in columns]
        lines.append(f"| {SETS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(key: str, value: object) -> str:
    if value is None:
        return "–"
    if key in ("pictures", "fid_pocket", "vae_fid_pocket"):
        return str(value)
    return f"{100 * float(str(value)):.1f}"


def write_report(facts: Mapping[str, Mapping[str, object]], settings: Mapping[str, object], into: Path) -> None:
    """Puts the table between its marks in a document, at its end if it has none.

    Args:
        facts: Result of `evaluate`.
        settings: How it was drawn, for the line below the table.
        into: The document.
    """
    how = ", ".join(f"{name} {value}" for name, value in settings.items())
    body = f"{table_of(facts)}\n\nPer cent, by the judge, with the averaged weights; {how}.\n"
    write_section(into, body, MARK)


def save_sheets(drawn: DrawnTruths, folder: Path, count: int = 60, blind: int = 100, columns: int = 10) -> None:
    """Writes ``sheet.png``, unpicked pictures with their truths beside them, and a blind sheet to read.

    ``blind.png`` shows numbered pictures alone; ``blind.json`` holds, by number, caption, wanted concept, and the
    judge's verdict, to be opened after one has written down what one sees.

    Args:
        drawn: The pictures; the first of them are taken.
        folder: Folder to write.
        count: Pictures of the sheet.
        blind: Pictures of the blind sheet.
        columns: Pictures beside each other.
    """
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    pairs = [np.concatenate([true, mine], 1) for true, mine in zip(drawn.truth.pixels, drawn.pixels, strict=True)]
    framed = [np.pad(pair, ((2, 2), (2, 2), (0, 0)), constant_values=160) for pair in pairs[:count]]
    Image.fromarray(_grid(framed, columns // 2)).save(folder / "sheet.png")
    tiles, rows = [], []
    for number, (pixels, verdict, caption) in enumerate(
        zip(drawn.pixels[:blind], drawn.verdicts, drawn.captions, strict=False), 1
    ):
        tile = Image.new("RGB", (132, 148), "white")
        tile.paste(Image.fromarray(pixels).resize((128, 128), Image.Resampling.NEAREST), (2, 18))
        ImageDraw.Draw(tile).text((4, 2), str(number), fill="black")
        tiles.append(np.asarray(tile))
        wanted = drawn.truth.scenes[number - 1].attributes
        row = {"number": number, "caption": caption, "wanted": wanted, "judge": verdict.scene.attributes}
        rows.append(row | {"top5": list(verdict.top), "error": round(verdict.error, 1)})
    Image.fromarray(_grid(tiles, columns)).save(folder / "blind.png")
    (folder / "blind.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    captions = [{"number": i + 1, "caption": caption} for i, caption in enumerate(drawn.captions[:count])]
    (folder / "sheet.json").write_text(json.dumps(captions, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _grid(tiles: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Pictures of one size in rows; what is missing in the last one is white."""
    blank = np.full_like(tiles[0], 255)
    full = [*tiles, *[blank] * (-len(tiles) % columns)]
    rows = [np.concatenate(full[i : i + columns], 1) for i in range(0, len(full), columns)]
    return np.concatenate(rows)
