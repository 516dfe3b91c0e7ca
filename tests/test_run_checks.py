from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from m2chat.run_checks import config_files, is_shorter, next_command


@pytest.mark.parametrize(
    ("name", "given", "configured", "shorter"),
    [
        ("trainer.max_steps", 20, -1, True),
        ("trainer.max_steps", -1, 20, False),
        ("trainer.max_epochs", 8, 4, False),
        ("trainer.max_epochs", 4, 4, False),
        ("trainer.max_epochs", 1, None, True),
        ("data.samples_per_epoch", 12, 8000, True),
        ("data.samples_per_epoch", None, 8000, False),
        ("trainer.limit_train_batches", 3, None, True),
        ("trainer.limit_train_batches", 1.0, None, False),
        ("trainer.fast_dev_run", True, False, True),
        ("trainer.max_time", "00:00:10:00", None, True),
    ],
)
def test_what_makes_a_training_shorter(name: str, given: Any, configured: Any, shorter: bool) -> None:
    assert is_shorter(name, given, configured) is shorter


def test_the_next_command_names_a_checkpoint_that_would_be_passed_over(tmp_path: Path) -> None:
    for name in ("stage1", "stage2", "eval_mmdialog"):
        (tmp_path / f"{name}.yaml").touch()
    files = [*config_files(["fit", "--config", f"{tmp_path}/stage1.yaml", "--config=b.yaml", "--trainer.devices", "1"])]
    assert files == [f"{tmp_path}/stage1.yaml", "b.yaml"]
    assert next_command("align", "a.ckpt", files, False) == f"Next: lightning fit --config {tmp_path}/stage2.yaml"
    assert next_command("align", "a.ckpt", files, True).endswith("--model.init_args.init_from a.ckpt")
    chat, test = next_command("m3ft", "a.ckpt", files, True).splitlines()
    assert chat == "Next: m2chat chat --model a.ckpt"
    assert test.endswith(f"lightning test --config {tmp_path}/eval_mmdialog.yaml --ckpt_path a.ckpt")
    assert next_command("describe", "a.ckpt", files, True) == ""
