"""How many free wordings the pocket model answers with a picture that fits, beside three baselines.

    python scripts/pocket_prompts.py prompts.jsonl --rows model words lookup smollm2

The file has a JSON object a line: {"say": "we baked a loaf", "any_of": ["bread", "baguette bread"]}, with CLDR's names
of what would do. A reply is right if the judge reads one of them in its first picture: one greedy reply at seed 0, no
retry; replies without a picture count as wrong. The baselines:

    words    what is typed, given to the decoder as a caption
    lookup   the true picture of the emoji whose name and CLDR keywords share most word stems with what is typed
    smollm2  SmolLM2, asked to name an emoji; the decoder draws its answer
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2chat.commands.arguments import new_file
from m2chat.commands.options import add_model_options

if TYPE_CHECKING:
    from m2chat.pipeline import M2ChatPipeline
    from m2chat.schema import Picture
    from m2chat.worlds.emoji.scenes import Pictures, Scene

ROWS = ("model", "words", "lookup", "smollm2")
ASK = "Answer each message with the name of the one emoji that fits it best, and nothing else."
EXAMPLES = {"We baked a loaf.": "bread", "it snowed all night": "snowflake", "She plays in an orchestra": "violin"}
"""What SmolLM2 is shown first: without examples it answers in sentences, or with emoji."""
_STOP = frozenset(
    "a an and are as at be can could do for from get give has have i in is it its let like me my of on or our out "
    "please see show so some something that the this to use used want was we what when which who with would you your "
    "draw paint picture need".split()
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    options.add_argument("file", type=Path, help="wordings, a JSON object a line")
    options.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    options.add_argument("--root", type=Path, default=Path("data/pocket"), help="judge and pictures (%(default)s)")
    options.add_argument("--sdxl", type=Path, help="decoder where the rows have no model (default: ROOT/sdxl)")
    options.add_argument(
        "--vae", type=Path, help="its VAE, while its UNet is still trained on an earlier one's latents"
    )
    options.add_argument("--smollm2", type=Path, default=Path("data/smollm2"), help="default: %(default)s")
    options.add_argument("--out", type=new_file, help="JSON with every reply")
    add_model_options(options)
    return options


def stems(text: str) -> list[str]:
    """Words of a text without the ends that English gives them, and without those that every sentence has."""
    words = re.findall(r"[a-z]+", re.sub(r"['’](?:m|s|re|ve|ll|d|t)\b", "", text.lower()))
    return [_stem(word) for word in words if len(word) > 1 and word not in _STOP]


def _stem(word: str) -> str:
    for end, rest in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(end) and len(word) - len(end) > 2 and not word.endswith("ss"):
            word = word[: len(word) - len(end)] + rest
            break
    return word[:-1] if word.endswith("e") else word  # "dancing" and "dance" meet


class Lookup:
    """Finds the emoji whose name and keywords share most with a text: rare stems count more, the name's twice.

    Args:
        scenes: The scenes of a world.
    """

    def __init__(self, scenes: Iterable[Scene]) -> None:
        self.names: dict[str, set[str]] = {}
        self.words: dict[str, set[str]] = {}
        for scene in scenes:
            name = self.names.setdefault(scene.concept, set(stems(scene.concept)))
            self.words.setdefault(scene.concept, set(name)).update(s for word in scene.keywords for s in stems(word))
        self.known_by = Counter(stem for words in self.words.values() for stem in words)

    def __call__(self, text: str) -> str | None:
        """The concept, the one with the shorter name of several that share as much; None if none shares anything."""
        asked = set(stems(text))

        def score(concept: str) -> tuple[float, int, str]:
            shared = asked & self.words[concept]
            rarity = {stem: math.log(len(self.words) / self.known_by[stem]) for stem in shared}
            total = sum(value * (2 if stem in self.names[concept] else 1) for stem, value in rarity.items())
            return total, -len(self.names[concept]), concept

        best = max(self.words, key=score)
        return best if score(best)[0] > 0 else None


def wanted(name: str, scenes: Sequence[Scene]) -> dict[str, str] | None:
    """What a picture of a CLDR name must show: its concept, and what else the name says; None if there is none."""
    from m2chat.worlds.emoji.packages import clean_label

    name = clean_label(name)
    if any(scene.concept == name for scene in scenes):
        return {"concept": name}
    scene = next((scene for scene in scenes if scene.label == name), None)
    if scene is None:
        return None
    named = {"hair": scene.hair, "gender": scene.gender}
    return {"concept": scene.concept, **{key: value for key, value in named.items() if value}}


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate by Wilson's formula, in per cent."""
    z, p = 1.96, right / count
    middle, half = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2)
    return tuple(round(100 * (middle + sign * half) / (1 + z * z / count), 1) for sign in (-1, 1))  # type: ignore[return-value]


def smollm2_names(folder: Path, texts: Sequence[str]) -> list[str]:
    """First line of SmolLM2's greedy answers, without marks."""
    from m2chat._compat import ensure_torchvision

    ensure_torchvision()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    names = []
    for text in texts:
        talk = [{"role": "system", "content": ASK}]
        for request, name in (*EXAMPLES.items(), (text, "")):
            talk += [{"role": "user", "content": request}, {"role": "assistant", "content": name}]
        del talk[-1]
        ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answer = model.generate(**ids, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.eos_token_id)[0]
        line = tokenizer.decode(answer[ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        names.append(line.partition("\n")[0].strip(" .\"'*:") or text)
    return names


def decoder_of(sdxl: Path, vae: Path | None) -> Callable[[Sequence[str]], list[Picture]]:
    """Draws captions with a diffusers folder, at seed 0."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from m2chat.worlds.emoji.recipe.drawing import draw
    from m2chat.worlds.small_sdxl import Conditioner

    unet, autoencoder = (
        kind.from_pretrained(folder, low_cpu_mem_usage=False).float().eval()
        for kind, folder in ((UNet2DConditionModel, sdxl / "unet"), (AutoencoderKL, vae or sdxl / "vae"))
    )
    condition = Conditioner(sdxl, is_xl=True)
    return lambda captions: list(draw(unet, autoencoder, condition, captions))


def replies_of(pipe: M2ChatPipeline, texts: Sequence[str]) -> list[dict[str, Any]]:
    """First replies: text, caption and picture of each; None where nothing is drawn."""
    import numpy as np
    import torch

    rows = []
    for output in pipe(list(texts), generator=torch.Generator().manual_seed(0)):
        first = next(iter(output.pictures), None)
        seen = {"caption": None, "picture": None} if first is None else {
            "caption": first.caption, "picture": np.asarray(first.image)
        }  # fmt: skip
        rows.append({"text": output.text, **seen})
    return rows


def measure(options: argparse.Namespace, prompts: Sequence[dict[str, Any]], pictures: Pictures) -> dict[str, Any]:
    """Right or wrong for each wording, by row, with what was answered."""
    import numpy as np
    import torch

    from m2chat.commands.common import load_pipeline
    from m2chat.errors import UserError
    from m2chat.worlds.emoji.captions import CaptionReader
    from m2chat.worlds.emoji.judge import PictureJudge
    from m2chat.worlds.emoji.scenes import SIZE

    texts = [prompt["say"] for prompt in prompts]
    would_do = [[to for name in prompt["any_of"] if (to := wanted(name, pictures.scenes))] for prompt in prompts]
    judge, reader = PictureJudge.load(options.root / "judge", pictures), CaptionReader(pictures.scenes)

    def does(number: int, shown: dict[str, str]) -> bool:
        return any(all(shown.get(key) == value for key, value in to.items()) for to in would_do[number])

    def judged(drawn: Sequence[Picture | None]) -> list[tuple[bool, str]]:
        there = [picture for picture in drawn if picture is not None]
        seen = iter(judge.read(np.stack(there)) if there else [])
        shown = [{} if picture is None else next(seen).seen for picture in drawn]
        return [(does(k, each), each.get("concept", "nothing")) for k, each in enumerate(shown)]

    rows: dict[str, list[tuple[bool, str]]] = {}
    if "model" in options.rows:
        pipe = load_pipeline(options, "pocket")
        if pipe.image_size != SIZE:
            raise UserError(
                f"{pipe.origin.path} draws {pipe.image_size} pixels a side: name a model of the emoji world"
            )

        def draw(captions: Sequence[str]) -> list[Picture]:
            return pipe.draw_captions(captions, list(range(len(captions))))

        replies = replies_of(pipe, texts)
        rows["model: picture"] = [
            (right, f"{reply['text']} [{reply['caption']}] {seen}")
            for (right, seen), reply in zip(judged([reply["picture"] for reply in replies]), replies, strict=True)
        ]
        rows["model: caption"] = [
            (does(k, reader.read(reply["caption"] or "")), reply["caption"] or "") for k, reply in enumerate(replies)
        ]
        rows["model: draws anything"] = [(reply["picture"] is not None, "") for reply in replies]
    elif {"words", "smollm2"} & set(options.rows):
        draw = decoder_of(options.sdxl or options.root / "sdxl", options.vae)
    if "words" in options.rows:
        rows["words to the decoder"] = judged(draw(texts))
    if "lookup" in options.rows:
        found = [Lookup(pictures.scenes)(text) for text in texts]
        rows["nearest name and keywords"] = [
            (does(k, {"concept": name or ""}), name or "") for k, name in enumerate(found)
        ]
    if "smollm2" in options.rows:
        with torch.inference_mode():
            names = smollm2_names(options.smollm2, texts)
        rows["SmolLM2 names"] = [(does(k, reader.read(name)), name) for k, name in enumerate(names)]
        drawn = judged(draw(names))
        rows["SmolLM2 names, the decoder draws"] = [
            (right, f"{name} -> {seen}") for name, (right, seen) in zip(names, drawn, strict=True)
        ]
    return rows


def main() -> None:
    """Measures and prints a table."""
    options = parser().parse_args()
    from m2chat.errors import UserError
    from m2chat.evaluation.markup import aligned
    from m2chat.worlds.emoji.recipe.make import world_pictures

    if not options.file.is_file():
        raise UserError(f"there is no {options.file}: name a file with a JSON object a line")
    prompts = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines() if line.strip()]
    pictures = world_pictures(options.root)
    names = sorted({name for prompt in prompts for name in prompt["any_of"]})
    print("names without a picture here:", [name for name in names if wanted(name, pictures.scenes) is None] or "none")
    rows = measure(options, prompts, pictures)
    lines = [("row", "right", "n", "%", "95 % (Wilson)")]
    for name, cases in rows.items():
        right, count = sum(case for case, _ in cases), len(cases)
        low, high = wilson(right, count)
        lines.append((name, str(right), str(count), f"{100 * right / count:.1f}", f"{low} ... {high}"))
    print(aligned(lines))
    if options.out:
        record = [
            {
                "say": prompt["say"],
                **{name: {"right": cases[k][0], "answer": cases[k][1]} for name, cases in rows.items()},
            }
            for k, prompt in enumerate(prompts)
        ]
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from m2chat.errors import UserError

    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
