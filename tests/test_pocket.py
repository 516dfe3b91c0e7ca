"""The pocket system as a stranger meets it: the shipped weights on the real SmolLM2, which `make smollm2` brings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2chat import cli, shipped
from m2chat.pipeline import M2ChatPipeline, PipelineOutput
from m2chat.worlds.emoji.captions import CaptionReader
from m2chat.worlds.emoji.judge import PictureJudge, world_judge

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(
        not (ROOT / "data/pocket" / shipped.WEIGHTS).is_file(), reason="its weights are not trained yet"
    ),
    pytest.mark.skipif(not (ROOT / "data/smollm2").is_dir(), reason="`make smollm2` brings its language model"),
    pytest.mark.filterwarnings("ignore"),
]
REQUESTS = {
    "draw me an octopus please": "octopus", "can i see a pizza": "pizza", "Show me a picture of a bicycle!": "bicycle",
    "i'd love a picture of a penguin": "penguin", "Please paint a rainbow": "rainbow", "a snowman, please": "snowman",
    "could you draw a guitar for me": "guitar", "I want to see a rocket": "rocket", "picture of a tulip pls": "tulip",
    "Draw a whale": "whale", "give me a cactus": "cactus", "may I have a picture of an airplane?": "airplane",
}  # fmt: skip
EVERYDAY = (
    "What is the capital of Sweden?", "How do I fall asleep faster?", "Why do leaves turn red?",
    "Can you explain what a verb is?", "What's a good name for a boat?", "How are you today?",
    "Who was Albert Einstein?", "What should I say in a job interview?",
)  # fmt: skip
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Runs a command, and prints its greatest memory in KiB."""


@pytest.fixture(scope="module")
def pipe() -> M2ChatPipeline:
    pipe = M2ChatPipeline.from_pretrained("pocket")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def judge() -> PictureJudge:
    return world_judge()


def answers(pipe: M2ChatPipeline, texts: list[str]) -> list[PipelineOutput]:
    return pipe(texts, num_inference_steps=10, generator=torch.Generator().manual_seed(0))


def test_it_answers_by_default_and_says_what_it_knows() -> None:
    assert shipped.default_model() == ("pocket", "")


def test_requests_are_answered_with_what_they_ask_for(pipe: M2ChatPipeline, judge: PictureJudge) -> None:
    outputs, wanted = answers(pipe, list(REQUESTS)), list(REQUESTS.values())
    assert sum(len(output.images) == 1 for output in outputs) >= 11
    reader = CaptionReader(judge.pictures.scenes)
    captions = [output.pictures[0].caption if output.pictures else "" for output in outputs]
    named = [reader.read(caption).get("concept") for caption in captions]
    assert sum(name == concept for name, concept in zip(named, wanted, strict=True)) >= 11, captions
    drawn = [np.asarray(output.images[0]) if output.images else np.zeros((64, 64, 3), np.uint8) for output in outputs]
    seen = [verdict.seen.get("concept") for verdict in judge.read(np.stack(drawn))]
    assert sum(name == concept for name, concept in zip(seen, wanted, strict=True)) >= 10, seen


def test_everyday_questions_are_answered_in_words(pipe: M2ChatPipeline) -> None:
    outputs = answers(pipe, list(EVERYDAY))
    assert sum(not output.images for output in outputs) >= 7, [output.text for output in outputs]
    assert all(len(output.text.split()) > 2 for output in outputs if not output.images)


def test_it_sees_what_is_shown(pipe: M2ChatPipeline, judge: PictureJudge) -> None:
    shown = [
        judge.pictures.find(concept, style)
        for style in ("noto", "twemoji")
        for concept in ("dog face", "pizza", "red heart", "octopus", "rainbow", "bicycle")
    ]
    captions = [text.lower() for text in pipe.caption([picture for _, picture in shown])]
    names = [{scene.concept, *scene.keywords} for scene, _ in shown]
    assert sum(any(n in text for n in some) for some, text in zip(names, captions, strict=True)) >= 6, captions
    blank = pipe.caption([np.full((64, 64, 3), 255, np.uint8)])[0].lower()
    assert sum(text != blank for text in captions) >= 10


def test_an_edit_takes_the_picture_that_is_shown(pipe: M2ChatPipeline, judge: PictureJudge, tmp_path: Path) -> None:
    _, dog = judge.pictures.find("dog face", "noto")
    session = pipe.session(steps=10)
    edited = session.reply("Turn it into a cat", [dog])
    assert len(edited.images) == 1 and edited.text
    assert session.reply("thank you!").text
    session.save(tmp_path / "talk")


@pytest.mark.parametrize("model", ["pocket", None])
def test_a_command_draws_within_its_memory(model: str | None, tmp_path: Path) -> None:
    named = ["--model", model] if model else []
    m2chat = str(Path(sys.executable).with_name("m2chat"))
    command = [m2chat, "draw", "a red apple", *named, "--steps", "8", "--out", str(tmp_path)]
    # From a small process: what starts another counts as its memory.
    done = subprocess.run([sys.executable, "-c", PEAK, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pocket" in done.stderr and "It knows what emoji show" in done.stderr
    assert Image.open(tmp_path / "draw-0.png").size == (64, 64)
    peak = int(done.stdout.splitlines()[-1])
    assert 0.5e6 < peak < 1.6e6, f"{peak} KiB"


def test_every_stage_goes_on_from_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    few = (
        "--data.batch_size=2",
        "--data.samples_per_epoch=4",
        "--trainer.max_epochs=1",
        "--trainer.limit_val_batches=0",
    )
    for stage in (1, 2):
        assert (
            cli.main(["fit", f"--config=configs/pocket/stage{stage}.yaml", *few, "--trainer.enable_progress_bar=false"])
            == 0
        )
        assert list(Path("lightning_logs").glob(f"stage{stage}_*/checkpoints/*.ckpt"))
    brief = ("--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false")
    assert cli.main(["test", "--config=configs/pocket/eval_mmdialog.yaml", *brief]) == 0
