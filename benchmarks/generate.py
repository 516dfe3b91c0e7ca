"""Drawing beside diffusers, decoding beside transformers, and how long a user waits.

To run again, from the folder of the project (some five minutes of one core):

    OMP_NUM_THREADS=1 python benchmarks/generate.py [image] [text] [wait]

It writes ``benchmarks/results/generate.json``. Both sides run the same weights in the same process, in turn; that they
give the same is asserted first. The micro model is small: much of this is what a call costs beside its arithmetic.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from timing import chosen_parts, compare

if __name__ == "__main__":  # before what takes seconds to import
    CHOSEN = chosen_parts(__doc__, ("image", "text", "wait"))

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from m2chat._compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from m2chat.models.generation import Decoding, stream_replies  # noqa: E402
from m2chat.pipeline import Drawn, M2ChatPipeline, Words  # noqa: E402
from m2chat.pipeline.inputs import vision_pixels  # noqa: E402
from m2chat.text import Request  # noqa: E402

STEPS, GUIDANCE = 25, 5.0
PROMPTS = (
    "please paint a large red circle on the left on a blue background",
    "I dream of a ball like the sea in front of snow",
    "can you show me a small pink ring at the top on a green background ?",
    "make a picture of a red ring left of a pink square on a black background",
)


def beside_diffusers(pipe: M2ChatPipeline, batch: int) -> dict[str, Any]:
    """Drawing from a given condition: our loop and `StableDiffusionXLPipeline`."""
    from diffusers import StableDiffusionXLPipeline

    decoder = pipe.model.decoder
    theirs = StableDiffusionXLPipeline.from_pretrained(ROOT / "data/micro/sdxl").to(torch.float32)
    theirs.set_progress_bar_config(disable=True)
    ids, ids_2 = pipe.captions(list(PROMPTS[:batch]))
    sequence, pooled = decoder.encode_text(ids, ids_2)
    side, seeds = pipe.image_size, list(range(batch))
    time_ids = torch.tensor([[side, side, 0, 0, side, side]] * batch, dtype=torch.float32)
    shape = (decoder.unet.config.in_channels, side // decoder.vae_factor, side // decoder.vae_factor)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def our_pictures() -> torch.Tensor:
        return (decoder.sample(sequence, pooled, time_ids, seeds, STEPS, GUIDANCE) + 1) / 2

    def their_pictures() -> torch.Tensor:
        pictures: torch.Tensor = theirs(
            prompt_embeds=sequence, pooled_prompt_embeds=pooled,
            negative_prompt_embeds=torch.zeros_like(sequence), negative_pooled_prompt_embeds=torch.zeros_like(pooled),
            latents=noise.clone(), height=side, width=side, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            output_type="pt",
        ).images  # fmt: skip
        return pictures

    difference = float((our_pictures() - their_pictures()).abs().max())
    assert difference < 1e-4, f"the pictures differ by {difference}"

    def ours() -> int:
        our_pictures()
        return batch

    def diffusers() -> int:
        their_pictures()
        return batch

    return {"steps": STEPS, "max_difference": difference, **compare(ours, diffusers)}


def beside_transformers(pipe: M2ChatPipeline, batch: int) -> dict[str, Any]:
    """Greedy answer and caption up to the first image token: our loop and `generate`."""
    tokens, model = pipe.layout.tokenizer, pipe.model
    replier = pipe.replier()
    pixels = vision_pixels([None] * batch, pipe.vision, pipe.device)
    prompts = [pipe.layout.prompt(Request(text), 200)[0] for text in PROMPTS[:batch]]
    longest = max(map(len, prompts))
    ids = torch.tensor([[tokens.pad_id] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])

    def our_tokens() -> list[list[int]]:
        segments: list[Any] = []
        # One slot a picture: a second segment stands behind it at once, and what follows is no part of the comparison.
        for segments in stream_replies(model, prompts, pixels, replier.special, Decoding(num_image_tokens=1)):
            if all(len(own) > 1 for own in segments):
                break
        return [[*own[0].answer, tokens.ic_id, *(own[0].caption or [])] for own in segments]

    def their_tokens() -> list[list[int]]:
        query = model.visual_query(model.clip(pixels))
        out = model.llama.generate(
            ids, attention_mask=mask, visual_query=query, do_sample=False, max_new_tokens=64,
            eos_token_id=[tokens.eos_id, tokens.img_id], pad_token_id=tokens.pad_id,
        )  # fmt: skip
        ends = {tokens.eos_id, tokens.img_id}
        rows = [row[longest:] for row in out.tolist()]
        return [row[: next((k for k, token in enumerate(row) if token in ends), len(row))] for row in rows]

    first, second = our_tokens(), their_tokens()
    assert first == second, f"the tokens differ: {first} {second}"
    count = sum(map(len, first))

    def ours() -> int:
        our_tokens()
        return count

    def transformers() -> int:
        their_tokens()
        return count

    return {"tokens": count, **compare(ours, transformers)}


def waiting(pipe: M2ChatPipeline, rounds: int = 7) -> dict[str, Any]:
    """What a user waits for: the first words of a reply, and a picture from its first denoising step to its last.

    The first words come from a request whose reply begins with words; with a picture shown, which must be described
    first.
    """
    import numpy as np

    picture = np.full((64, 64, 3), 200, np.uint8)
    words, pictures, cpu_words, cpu_pictures = [], [], [], []
    for number in range(rounds + 1):
        session = pipe.session(steps=STEPS, preview_every=5, seed=number)
        start, cpu = time.perf_counter(), time.process_time()
        heard, drawing = None, None
        for event in session.stream("I dream of a ball like the sea in front of snow", [picture], image="force"):
            if heard is None and isinstance(event, Words) and event.of == "answer" and event.text.strip():
                heard = (time.perf_counter() - start, time.process_time() - cpu)
            if isinstance(event, Words):
                drawing = (time.perf_counter(), time.process_time())
            if isinstance(event, Drawn):
                break
        assert heard is not None and drawing is not None
        if number:
            words.append(heard[0])
            cpu_words.append(heard[1])
            pictures.append(time.perf_counter() - drawing[0])
            cpu_pictures.append(time.process_time() - drawing[1])
        session.stop()
    return {
        "rounds": rounds,
        "first_words_s": {"wall": round(median(words), 3), "cpu": round(median(cpu_words), 3), "goal": 1.0},
        "picture_25_steps_s": {"wall": round(median(pictures), 3), "cpu": round(median(cpu_pictures), 3), "goal": 3.0},
    }


def main(parts: list[str]) -> None:
    """Measures some parts, and writes them down beside what was measured before."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pipe = M2ChatPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    path = ROOT / "benchmarks" / "results" / "generate.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    result["machine"] = {
        "processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
        "load": [round(value, 1) for value in os.getloadavg()], "torch": torch.__version__,
    }  # fmt: skip
    with torch.no_grad():
        for what in parts:
            if what == "image":
                result["image"] = {f"batch {n}": beside_diffusers(pipe, n) for n in (1, 4)}
            elif what == "text":
                result["text"] = {f"batch {n}": beside_transformers(pipe, n) for n in (1, 4)}
            else:
                result["wait"] = waiting(pipe)
            print(json.dumps({what: result[what]}, indent=1))
            path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(CHOSEN)
