"""`m2chat data caption`: the language model with its eye writes the captions that are missing."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from m2chat.data.shards import Shard
    from m2chat.models.config import BackboneConfig


_NOTE = "captioned.json"
"""What the captions in a folder are of, and which shards are done: with these a run that was killed goes on."""


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "caption", help="write the missing captions of shards with the language model and its eye"
    )
    parser.add_argument("shards", metavar="SHARDS", help="a .tar shard, a folder of them, or a pattern")
    parser.add_argument("dst", type=Path, metavar="DST", help="folder for the captioned shards; those there are kept")
    parser.add_argument("--language-model", default="data/micro/llama", help="folder (default: %(default)s)")
    parser.add_argument("--adapter", default="data/micro/adapter/BIAS-micro.pth", help="file (default: %(default)s)")
    parser.add_argument(
        "--vision-encoder", default="data/micro/clip", help="folder or open_clip name and tag (default: %(default)s)"
    )
    parser.add_argument("--channel-order", choices=("rgb", "bgr"), default="rgb", help="of the adapter's training")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="pictures at once (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    parser.set_defaults(run=run)


def writer_of(backbone: BackboneConfig) -> str:
    """How a model is named as the origin of its captions."""
    return f"model:{Path(backbone.adapter).stem}"


class Captioner:
    """Says what pictures show.

    Args:
        backbone: The networks; the image decoder is not needed.
        device: Where they run.
    """

    def __init__(self, backbone: BackboneConfig, device: str = "cpu") -> None:
        from m2chat._compat import ensure_torchvision

        ensure_torchvision()
        from m2chat.data.images import VisionInput
        from m2chat.models.build import load_clip, load_language
        from m2chat.text import DESCRIBE, Layout, M2ChatTokenizer, Request

        llama, visual_query = load_language(backbone)
        self.llama, self.visual_query = llama.eval().to(device), visual_query.eval().to(device)
        self.clip = load_clip(backbone).to(device)
        self.vision = VisionInput.of(backbone.vision_encoder)
        self.tokenizer = M2ChatTokenizer(backbone.language_model)
        room = int(llama.config.max_position_embeddings)
        self.prompt, _ = Layout(self.tokenizer, 0, room).prompt(Request(DESCRIBE), room)
        self.device = device
        self.name = writer_of(backbone)

    def captions(self, pictures: Sequence[NDArray[Any]]) -> list[str]:
        """Greedy captions of pictures, RGB (H, W, 3) of 0-255."""
        import numpy as np
        import torch

        from m2chat.data.images import resize_crop
        from m2chat.schema import normalised

        squares = np.stack([resize_crop(pixels, self.vision.size)[0] for pixels in pictures])
        seen = torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous().to(self.device)
        shown = normalised(seen, self.vision.mean, self.vision.std)
        with torch.no_grad():
            output = self.llama.generate(
                torch.tensor([self.prompt] * len(pictures), device=self.device),
                visual_query=self.visual_query(self.clip(shown)),
                max_new_tokens=64,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_id,
            )
        texts = []
        for row in output.tolist():
            reply = row[len(self.prompt) :]
            end = reply.index(self.tokenizer.eos_id) if self.tokenizer.eos_id in reply else len(reply)
            texts.append(" ".join(self.tokenizer.decode(reply[:end]).split()))
        return texts


def captioned(
    shard: Shard, captioner: Captioner, size: int, bad: Counter[str]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a shard with all their captions; everything else of them stays as it is.

    Args:
        shard: Where they are.
        captioner: Writes what is missing.
        size: Samples that are looked at together.
        bad: Counts those that are left out, by reason.
    """
    from m2chat.data.images import BadImage, load_image
    from m2chat.data.sources import BadSample, read_record

    for start in range(0, len(shard.entries), size):
        group = []
        wanted: list[NDArray[Any]] = []
        for number in range(start, min(start + size, len(shard.entries))):
            try:
                members = shard.members(number)
                record = read_record(members)
                images = record.images if record else ()
                places = [i for i, image in enumerate(images) if not image.is_captioned]
                pictures = [load_image(members[images[i].member]) for i in places]
            except KeyError:
                bad["picture missing"] += 1
            except (BadSample, BadImage) as error:
                bad[error.reason] += 1
            else:
                group.append((shard.entries[number].key, members, record, places))
                wanted += pictures
        parts = [wanted[first : first + size] for first in range(0, len(wanted), size)]
        written = iter([text for part in parts for text in captioner.captions(part)])
        for key, members, record, places in group:
            if record is not None and places:
                said = {i: {"caption": next(written), "caption_by": captioner.name} for i in places}
                images = tuple(image.model_copy(update=said.get(i)) for i, image in enumerate(record.images))
                members["json"] = record.model_copy(update={"images": images}).to_json()
            yield key, members


def run(options: argparse.Namespace) -> None:
    """Captions shards, and says what became of them.

    Raises:
        UserError: If there are no shards, or they would be written onto themselves.
    """
    from m2chat.data.converters.progress import write_index
    from m2chat.data.shards import local_shards, open_shard
    from m2chat.data.tars import write_tar
    from m2chat.errors import UserError
    from m2chat.files import locked, write_whole
    from m2chat.models.config import BackboneConfig

    paths = local_shards(options.shards, "SHARDS")
    if any(path.parent.resolve() == options.dst.resolve() for path in paths):
        raise UserError(f"DST: {options.dst} holds the shards themselves: choose another folder")
    backbone = BackboneConfig(
        options.language_model, options.adapter, options.vision_encoder, channel_order=options.channel_order
    )
    options.dst.parent.mkdir(parents=True, exist_ok=True)
    with locked(options.dst, wait=False):
        done = _done_before(options.dst, writer_of(backbone), paths)
        captioner = Captioner(backbone, options.device)
        for path in paths:
            if path.name not in done["done"] or not (options.dst / path.name).is_file():
                bad: Counter[str] = Counter()
                write_tar(options.dst / path.name, captioned(open_shard(path), captioner, options.batch_size, bad))
                done["done"][path.name] = bad
                write_whole(options.dst / _NOTE, [json.dumps(done, indent=1), "\n"])
        bad = sum((Counter(done["done"][path.name]) for path in paths), Counter())
        index = _index(options.dst, [path.name for path in paths], captioner.name, bad)
        write_index(options.dst, index)
    print(f"{options.dst}: {len(paths)} shards, {index['samples']} samples with {index['pictures']} pictures")
    for reason, count in bad.most_common():
        print(f"  left out: {count:8} x {reason}")


def _done_before(folder: Path, writer: str, paths: Sequence[Path]) -> dict[str, Any]:
    """What a former run has done, as noted in the target folder; the note is made if there is none.

    Raises:
        UserError: If the folder holds captions of other shards or another writer, or something else.
    """
    from m2chat.errors import UserError
    from m2chat.files import write_whole

    remedy = "choose another folder, or delete this one to start anew"
    now: dict[str, Any] = {"captions": writer, "of": {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in paths}}
    note = folder / _NOTE
    if note.is_file():
        before: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if {key: before.get(key) for key in now} != now:
            raise UserError(
                f"DST: {folder} holds captions of other shards, or by another model than {writer}: {remedy}"
            )
        return before
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"DST: {folder} is not empty: {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(note, [json.dumps(now | {"done": {}}, indent=1), "\n"])
    return now | {"done": {}}


def _index(folder: Path, names: list[str], writer: str, bad: Counter[str]) -> dict[str, Any]:
    from m2chat.data.manifest import sha256_of
    from m2chat.data.record import SCHEMA
    from m2chat.data.shards import open_shard

    kinds: Counter[str] = Counter()
    shards, pictures = [], 0
    for name in names:
        path = folder / name
        entries = open_shard(path).entries
        kinds.update(entry.kind for entry in entries)
        pictures += sum(suffix not in ("json", "txt") for entry in entries for suffix, _, _ in entry.members)
        shards.append({"name": name, "samples": len(entries), "bytes": path.stat().st_size, "sha256": sha256_of(path)})
    return {
        "schema": SCHEMA,
        "settings": {"captions": writer},
        "samples": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "pictures": pictures,
        "uncaptioned": 0,
        "rejects": dict(sorted(bad.items())),
        "shards": shards,
    }
