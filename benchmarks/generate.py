"""Drawing beside diffusers, decoding beside transformers, a reply beside both, and how long a user waits.

To run again, from the folder of the project (some five minutes of one core):

    OMP_NUM_THREADS=1 python benchmarks/generate.py [image] [text] [reply] [fast] [wait] [pocket]

It writes ``benchmarks/results/generate.json``. Both sides run the same weights in the same process, in turn; that they
give the same is asserted first. The micro model is small: much of this is what a call costs beside its arithmetic.
``pocket`` is ``wait`` for the pocket model, which needs `make smollm2`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from timing import chosen_parts, compare

if __name__ == "__main__":  # before what takes seconds to import
    CHOSEN = chosen_parts(__doc__, ("image", "text", "reply", "fast", "wait", "pocket"))

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from m2chat._compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from m2chat.models.generation import Decoding, stream_replies  # noqa: E402
from m2chat.pipeline import Drawn, M2ChatPipeline, Words  # noqa: E402
from m2chat.pipeline.drawing import noise_seed  # noqa: E402
from m2chat.pipeline.inputs import vision_pixels, waiting  # noqa: E402
from m2chat.schema import Conversation, Turn  # noqa: E402
from m2chat.text import Request  # noqa: E402

STEPS, GUIDANCE, DDIM_STEPS = 25, 5.0, 30
PROMPTS = (
    "please paint a large red circle on the left on a blue background",
    "I dream of a ball like the sea in front of snow",
    "can you show me a small pink ring at the top on a green background ?",
    "make a picture of a red ring left of a pink square on a black background",
)


def diffusers_pipeline() -> Any:
    """`StableDiffusionXLPipeline` as a user of diffusers loads the same weights."""
    from diffusers import StableDiffusionXLPipeline

    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(ROOT / "data/micro/sdxl", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by(theirs: Any, sequence: torch.Tensor, pooled: torch.Tensor, seeds: Sequence[int], side: int) -> Any:
    """Pictures of diffusers' pipeline from given conditions, (B, 3, H, W) in [0, 1]."""
    shape = (theirs.unet.config.in_channels, side // theirs.vae_scale_factor, side // theirs.vae_scale_factor)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return theirs(
        prompt_embeds=sequence, pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.zeros_like(sequence), negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        latents=noise, height=side, width=side, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="pt",
    ).images  # fmt: skip


def beside_diffusers(pipe: M2ChatPipeline, batch: int) -> dict[str, Any]:
    """Drawing from a given condition: our loop and `StableDiffusionXLPipeline`."""
    decoder, theirs = pipe.model.decoder, diffusers_pipeline()
    ids, ids_2 = pipe.captions(list(PROMPTS[:batch]))
    sequence, pooled = decoder.encode_text(ids, ids_2)
    assert pooled is not None
    side, seeds = pipe.image_size, list(range(batch))
    time_ids = torch.tensor([[side, side, 0, 0, side, side]] * batch, dtype=torch.float32)

    def our_pictures() -> torch.Tensor:
        return (decoder.sample(sequence, pooled, time_ids, seeds, STEPS, GUIDANCE) + 1) / 2

    difference = float((our_pictures() - drawn_by(theirs, sequence, pooled, seeds, side)).abs().max())
    assert difference < 1e-4, f"the pictures differ by {difference}"

    def ours() -> int:
        our_pictures()
        return batch

    def diffusers() -> int:
        drawn_by(theirs, sequence, pooled, seeds, side)
        return batch

    return {"steps": STEPS, "max_difference": difference, **compare(ours, diffusers)}


def generated(pipe: M2ChatPipeline, prompts: Sequence[Sequence[int]], query: torch.Tensor) -> list[list[int]]:
    """Greedy tokens of transformers' `generate` up to the first image token or the end."""
    tokens, longest = pipe.layout.tokenizer, max(map(len, prompts))
    ids = torch.tensor([[tokens.pad_id] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = pipe.model.llama.generate(
        ids, attention_mask=mask, visual_query=query, do_sample=False, max_new_tokens=64,
        eos_token_id=[tokens.eos_id, tokens.img_id], pad_token_id=tokens.pad_id,
    )  # fmt: skip
    ends = {tokens.eos_id, tokens.img_id}
    rows = [row[longest:] for row in out.tolist()]
    return [row[: next((k for k, token in enumerate(row) if token in ends), len(row))] for row in rows]


def beside_transformers(pipe: M2ChatPipeline, batch: int) -> dict[str, Any]:
    """Greedy answer and caption up to the first image token: our loop and `generate`."""
    tokens, model = pipe.layout.tokenizer, pipe.model
    replier = pipe.replier()
    pixels = vision_pixels([None] * batch, pipe.vision, pipe.device)
    prompts = [pipe.layout.prompt(Request(text), 200)[0] for text in PROMPTS[:batch]]

    def our_tokens() -> list[list[int]]:
        segments: list[Any] = []
        # One slot a picture: a second segment stands behind it at once, and what follows is no part of the comparison.
        for segments in stream_replies(model, prompts, pixels, replier.special, Decoding(num_image_tokens=1)):
            if all(len(own) > 1 for own in segments):
                break
        return [[*own[0].answer, tokens.ic_id, *(own[0].caption or [])] for own in segments]

    def their_tokens() -> list[list[int]]:
        return generated(pipe, prompts, model.visual_query(model.clip(pixels)))

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


def beside_both(pipe: M2ChatPipeline, batch: int) -> dict[str, Any]:
    """A whole reply with one picture, and `generate`, a second pass over the sequence, and diffusers' pipeline."""
    tokens, model, theirs = pipe.layout.tokenizer, pipe.model, diffusers_pipeline()
    talks = [Conversation(f"{k}", (Turn("user", (text,)),)) for k, text in enumerate(PROMPTS[:batch])]
    inputs = waiting(talks, pipe.vision, pipe.device)
    replier = pipe.replier("force", 1, pipe.draw_settings(STEPS, GUIDANCE))
    seeds = [noise_seed(0, f"{name}/0") for name in inputs.names]

    def our_pictures() -> Any:
        return np.stack([reply.images[0] for reply in replier.reply(inputs, seeds=[0] * batch)[0]])  # type: ignore[arg-type]

    def their_pictures() -> Any:
        prompts = replier._start(inputs.views, "nothing").prompts
        f_img = model.clip(inputs.context_pixels)
        query = model.visual_query(f_img)
        rows = []
        for prompt, row in zip(prompts, generated(pipe, prompts, query), strict=True):
            split = row.index(tokens.ic_id)
            rows.append(pipe.layout.assemble(prompt, [row[:split]], [row[split + 1 :]], 0))
        longest = max(len(row.input_ids) for row in rows)
        ids, *spans = (
            torch.tensor([getattr(row, name) + [0] * (longest - len(row.input_ids)) for row in rows])
            for name in ("input_ids", "answer", "caption", "image")
        )
        states = model.llama.model(ids, visual_query=query).last_hidden_state
        condition = model.m3adapter(states, *(span.bool() for span in spans), f_img, inputs.has_context)
        pixels = drawn_by(theirs, condition.h_align, condition.h_palign, seeds, pipe.image_size)
        return (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()

    difference = int(np.abs(our_pictures().astype(int) - their_pictures().astype(int)).max())
    assert difference <= 1, f"the pictures differ by {difference} of 255"

    def ours() -> int:
        our_pictures()
        return batch

    def both() -> int:
        their_pictures()
        return batch

    return {"steps": STEPS, "max_difference_of_255": difference, **compare(ours, both)}


def fast_beside_ddim(pipe: M2ChatPipeline, batch: int) -> dict[str, Any]:
    """The preset ``fast`` and 30 steps of DDIM; how their pictures compare is `m2chat eval swap`'s to say."""
    from m2chat.models.decoder_config import DecoderConfig
    from m2chat.models.image_decoder import ImageDecoder

    path, how = pipe.model.decoder.path, DecoderConfig(preset="fast")
    fast, plain = ImageDecoder(path, config=how), ImageDecoder(path, config=DecoderConfig(scheduler="ddim"))
    sequence, pooled = plain.encode_text(*pipe.captions(list(PROMPTS[:batch])))
    side, seeds = pipe.image_size, list(range(batch))
    time_ids = torch.tensor([[side, side, 0, 0, side, side]] * batch, dtype=torch.float32)

    def ours() -> int:
        return len(fast.sample(sequence, pooled, time_ids, seeds, how.steps, how.guidance))

    def theirs() -> int:
        return len(plain.sample(sequence, pooled, time_ids, seeds, DDIM_STEPS, GUIDANCE))

    return {"steps": [how.steps, DDIM_STEPS], **compare(ours, theirs)}


def waits(pipe: M2ChatPipeline, say: str, goals: tuple[float, float], rounds: int = 7) -> dict[str, Any]:
    """What a user waits for: the first words of a reply, and a picture from its first denoising step to its last.

    The first words come from a request whose reply begins with words; with a picture shown, which must be described
    first.
    """
    picture = np.full((64, 64, 3), 200, np.uint8)
    words, pictures, cpu_words, cpu_pictures = [], [], [], []
    for number in range(rounds + 1):
        session = pipe.session(steps=STEPS, preview_every=5, seed=number)
        start, cpu = time.perf_counter(), time.process_time()
        heard, drawing = None, None
        for event in session.stream(say, [picture], image="force"):
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
        "first_words_s": {"wall": round(median(words), 3), "cpu": round(median(cpu_words), 3), "goal": goals[0]},
        "picture_25_steps_s": {
            "wall": round(median(pictures), 3),
            "cpu": round(median(cpu_pictures), 3),
            "goal": goals[1],
        },
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
            elif what == "reply":
                result["reply"] = {f"batch {n}": beside_both(pipe, n) for n in (1, 4)}
            elif what == "fast":
                result["fast"] = {f"batch {n}": fast_beside_ddim(pipe, n) for n in (1, 4)}
            elif what == "wait":
                result["wait"] = waits(pipe, "I dream of a ball like the sea in front of snow", (1.0, 3.0))
            else:
                pocket = M2ChatPipeline.from_pretrained("pocket")
                result["pocket"] = waits(pocket, "I would like something to eat", (1.5, 4.0))
            print(json.dumps({what: result[what]}, indent=1))
            path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(CHOSEN)
