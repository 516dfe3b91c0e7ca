"""Every command of the data guide is run, on fifty pictures of odd sizes; only training is cut short."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2chat import cli
from m2chat.commands import main
from m2chat.worlds.shapes.shards import write_world

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip() for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines() if line
]
SHORT = ("--data.batch_size=4", "--data.samples_per_epoch=8", "--trainer.max_epochs=2", "--data.val_samples=4")


@pytest.mark.filterwarnings("ignore")
def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_world(ROOT / "data/micro/shards")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "micro").symlink_to(ROOT / "data/micro")
    monkeypatch.chdir(tmp_path)
    sizes, pixels = random.Random(0), np.random.default_rng(0)
    rows = []
    (tmp_path / "my_pictures").mkdir()
    for i in range(50):
        Image.fromarray(noise(sizes, pixels)).save(tmp_path / "my_pictures" / f"cat_{i}.jpg")
        rows.append(json.dumps({"file_name": f"cat_{i}.jpg", "text": f"my cat number {i} on a sofa"}))
    (tmp_path / "my_pictures" / "metadata.jsonl").write_text("\n".join(rows))
    ran = []
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        if program == "lightning":
            quiet = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
            assert cli.main([*arguments, *SHORT, *quiet]) == 0
        else:
            assert main(arguments) == 0, command
        ran.append(" ".join([program, *arguments[:2]]))
    assert {
        "m2chat data convert",
        "m2chat data inspect",
        "m2chat data validate",
        "m2chat data stats",
        "m2chat data subset",
    } <= set(ran)
    assert "data:image/jpeg" in Path("sheet.html").read_text(encoding="utf-8")
    assert "50 samples: 50 good" in capsys.readouterr().out
    # The set that is validated on is held out indeed.
    arguments = shlex.split(COMMANDS[-1])[1:]
    assert cli.main([*(text.replace("mine_train", "mine") for text in arguments), *SHORT]) == 2
    assert "train and val share 10 sample(s)" in capsys.readouterr().err


def noise(sizes: random.Random, pixels: np.random.Generator) -> np.ndarray:
    return pixels.integers(0, 256, (sizes.randrange(70, 400), sizes.randrange(70, 400), 3), dtype=np.uint8)


def test_files_that_it_names_exist() -> None:
    named = [link for link in re.findall(r"\]\(([^)#]+)\)", GUIDE) if "://" not in link]
    assert named and [link for link in named if not (ROOT / "docs" / link).exists()] == []
