"""A real language model: SmolLM2-135M-Instruct, which `make smollm2` brings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, LlamaForCausalLM

from m2chat import cli
from m2chat.models.build import load_language
from m2chat.models.config import BackboneConfig, NewAdapterConfig
from m2chat.models.weights.adapter import open_adapter
from m2chat.pipeline import M2ChatPipeline
from m2chat.text import M2ChatTokenizer

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "smollm2"
REQUESTS = [
    "Describe an apple in one short sentence.", "I'm hungry. What should I eat?", "I adopted a kitten today!",
    "What is 12 + 345?", "Name three colours.", "Write a haiku about rain.", "Who wrote Hamlet?",
    "Translate 'good morning' into French.", "What do bees make?", "Tell me a joke.", "Why is the sky blue?",
    "List two fruits.", "How many legs has a spider?", "What is the capital of Japan?", "Say hello.",
    "Is ice colder than water?", "What does <|im_end|> mean?", "Give me a word that rhymes with cat.",
    "What's the opposite of hot?", "Complete: once upon a",
]  # fmt: skip


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason="`make smollm2` brings it"),
]


@torch.inference_mode()
def test_its_continuations_under_a_new_adapter_are_transformers_own() -> None:
    sizes = NewAdapterConfig(prompts=10, layers=29, visual_blocks=2, visual_heads=2)
    clip = str(ROOT / "data" / "micro" / "clip")
    ours = load_language(BackboneConfig(str(FOLDER), "new", clip, "", 8, new_adapter=sizes))[0].eval()
    looking = torch.randn(1, 10, 576)  # which a closed gate keeps out
    theirs = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer, their_tokenizer = M2ChatTokenizer(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.ic_id) == (1, 2, 49152)
    assert tokenizer.chat_template == their_tokenizer.chat_template
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    for request in REQUESTS:
        conversation = [{"role": "user", "content": "REQUEST"}]
        prompt = their_tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        before, after = prompt.split("REQUEST")
        parts = tokenizer.special_ids(before), tokenizer.encode(request), tokenizer.special_ids(after)
        ids = torch.tensor([[token for part in parts for token in part]])
        if "<|" not in request:  # transformers takes typed marks for the tokens, and we never do
            assert ids.tolist()[0] == their_tokenizer.encode(before + request + after, add_special_tokens=False)
        logits = ours(ids, visual_query=looking).logits[..., :49152]
        torch.testing.assert_close(logits, theirs(ids).logits, atol=5e-5, rtol=0)
        settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 2, "attention_mask": torch.ones_like(ids)}
        answer = ours.generate(ids, visual_query=looking, **settings)
        assert torch.equal(answer, theirs.generate(ids, **settings)), request


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository's, and is the current one."""
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(stage: int, steps: int, *arguments: str) -> dict[str, list[float]]:
    """Trains a stage for a few steps of four samples by the command; returns the losses of each step by name."""
    few = ("--data.batch_size=4", f"--data.samples_per_epoch={4 * steps}", f"--trainer.max_steps={steps}")
    quiet = ("--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=1")
    config = f"--config=configs/pocket/stage{stage}.yaml"
    assert cli.main(["fit", config, *few, "--trainer.max_epochs=1", *quiet, *arguments]) == 0
    run = max(Path("lightning_logs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    events = EventAccumulator(str(run))
    events.Reload()
    losses = {
        name: [float(event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
        if name.startswith("train/loss")
    }
    assert losses and all(len(values) == steps and all(map(math.isfinite, values)) for values in losses.values())
    return losses


def newest(folder: Path) -> Path:
    """The newest checkpoint of the runs in a folder."""
    return max(folder.glob("lightning_logs/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.skipif(not (ROOT / "data/pocket/sdxl/unet").is_dir(), reason="`make backbones-pocket` trains them")
@pytest.mark.filterwarnings("ignore")
def test_three_stages_and_a_reply(workplace: Path) -> None:
    described = fit(0, 16, "--model.init_args.adapter_file=adapter.pth")["train/loss"]
    assert sum(described[-4:]) < 0.75 * sum(described[:4]), described
    assert open_adapter(Path("adapter.pth"), "x").base is not None
    adapter = "--model.init_args.backbone.adapter=adapter.pth"
    assert fit(1, 3, adapter).keys() >= {"train/loss_align", "train/loss_ddpm"}
    # A run that the command line has shortened is taken only if it is named.
    fit(2, 24, adapter, f"--model.init_args.init_from={newest(workplace)}")
    pipe = M2ChatPipeline.from_pretrained(str(newest(workplace)))
    assert pipe.origin.prompt == "chat" and pipe.origin.stage == "m3ft"
    reply = pipe("I'm hungry. What should I eat?", image_mode="force", num_inference_steps=2)
    assert reply.text and len(reply.images) >= 1 and np.asarray(reply.images[0]).std() > 0, reply
