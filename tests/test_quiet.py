"""A run prints what its user can use: each line is known; adverts and warnings of what is meant to be so are not."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from m2chat.quiet import quiet
from m2chat.worlds.shapes.shards import write_world

ROOT = Path(__file__).parents[1]
TRAINING = (
    "fit", "--config=configs/stage2.yaml", "--data.batch_size=4", "--data.samples_per_epoch=40",
    "--trainer.max_steps=3", "--trainer.limit_val_batches=0",
)  # fmt: skip
TEST = (
    "test", "--config=configs/eval_mmdialog.yaml", "--data.test_samples=6", "--data.eval_batch_size=3",
    "--model.init_args.evaluation.steps=2", "--model.init_args.evaluation.max_text_tokens=8",
    "--model.init_args.evaluation.layout=forced",
)  # fmt: skip
DRAW = ("draw", "a large red circle on the left on a blue background", "--steps=2")
KNOWN = {
    TRAINING: (
        r"A step has 4 samples: 4 on each of 1 device\.",
        r"Seed set to 0", r"Starting from the weights of .*", r"part +parameters +trained", r"[a-z_0-9]+( +[\d,]+){2}",
        r"`Trainer.fit` stopped: `max_steps=3` reached.",
        r"[\d:]{8} step 3 of 3, epoch 1 of 5, loss [\d.]+, [\d.]+ samples/s",
        r"Checkpoint: lightning_logs/.*\.ckpt", r"Next: m2chat chat --model .*", r" +or: lightning test --config .*",
    ),
    TEST: (
        r".*: UserWarning: fid_micro of 4 pictures in 64 features is biased upwards", r" *rank_zero_warn\(.*",
        r"Seed set to 0", r"Evaluating the weights of .*", r"[\d:]{8} test batch 2 of 2", r"Results: .*results.json",
        r"To look at: .*report.html", r"[┏┡└].*", r"┃ +Test metric +┃ +DataLoader 0 +┃", r"│ +test/\w+ +│ +\S+ +│",
    ),
    DRAW: (r"\[m2chat_pictures/draw-0.png: .*\]", r"All of them: .*"),
}  # fmt: skip


def printed(folder: Path, arguments: tuple[str, ...], *, terminal: bool = False) -> list[str]:
    """The lines that a command prints to its output and its errors, in a folder that looks like the repository's."""
    for name in ("configs", "data"):
        (folder / name).symlink_to(ROOT / name)
    module = "m2chat.commands" if arguments is DRAW else "m2chat.cli"
    command = [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TERM": "dumb", "COLUMNS": "200"}
    environment.pop("PYTHONWARNINGS", None)
    if terminal:
        reader, writer = os.openpty()
        process = subprocess.Popen(command, stdout=writer, stderr=writer, stdin=writer, cwd=folder, env=environment)
        os.close(writer)
        text = b""
        try:
            while part := os.read(reader, 65536):
                text += part
        except OSError:  # what a terminal says when nobody holds its other end any more
            pass
        os.close(reader)
        code = process.wait()
    else:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, env=environment)
        text, code = done.stdout, done.returncode
    assert code == 0, text.decode()
    return [line.rstrip() for line in re.split(r"[\r\n]+", text.decode()) if line.strip()]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(TRAINING, id="fit"),
        pytest.param(TEST, id="test", marks=pytest.mark.slow),
        pytest.param(DRAW, id="draw", marks=pytest.mark.slow),
    ],
)
def test_every_line_is_known(arguments: tuple[str, ...], tmp_path: Path) -> None:
    write_world(ROOT / "data/micro/shards")
    known = [re.compile(pattern) for pattern in KNOWN[arguments]]
    lines = printed(tmp_path, arguments)
    assert [line for line in lines if not any(pattern.fullmatch(line) for pattern in known)] == []
    assert [pattern.pattern for pattern in known if not any(pattern.fullmatch(line) for line in lines)] == []


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_no_lines(tmp_path: Path) -> None:
    write_world(ROOT / "data/micro/shards")
    text = "\n".join(printed(tmp_path, TRAINING, terminal=True))
    assert "Epoch 0/4" in text and " step 3 of 3" not in text
    for word in ("Warning", "warning", "litlogger", "Tip", "eval mode", "FLOPs", "deprecated", "TPU", "ModelSummary"):
        assert word not in text, word


def test_only_what_is_listed_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    place = "lightning/pytorch/loops/fit_loop.py"
    modes = "Found 579 module(s) in eval mode at the start of training. This may lead to unexpected behavior"
    with warnings.catch_warnings(record=True) as seen, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        with quiet():
            warnings.warn_explicit(modes, UserWarning, place, 1, "lightning.pytorch.loops.fit_loop")
            warnings.warn_explicit("loss is NaN", UserWarning, place, 1, "lightning.pytorch.loops.fit_loop")
            warnings.warn_explicit(modes, UserWarning, "m2chat/models/m2chat.py", 1, "m2chat.models.m2chat")
            rank_zero_info("TPU available: False, using: 0 TPU cores")
            rank_zero_info("GPU available: False, used: False")
            rank_zero_info("GPU available: True (cuda), used: False")
        warnings.warn_explicit(modes, UserWarning, place, 2, "lightning.pytorch.loops.fit_loop")
        rank_zero_info("TPU available: False, using: 0 TPU cores")
    assert [str(warning.message) for warning in seen] == ["loss is NaN", modes, modes]
    assert caplog.messages == ["GPU available: True (cuda), used: False", "TPU available: False, using: 0 TPU cores"]
