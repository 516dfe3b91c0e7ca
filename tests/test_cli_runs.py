"""The commands of the README with the real configurations, cut to a few steps, and what they say to mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from m2chat import cli
from m2chat.models.checkpoints import read_checkpoint
from m2chat.worlds.shapes.shards import write_world

ROOT = Path(__file__).parent.parent
SHORT = ("--data.batch_size=4", "--data.samples_per_epoch=8", "--trainer.max_steps=2", "--trainer.max_epochs=1")
NO_BAR = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")

pytestmark = pytest.mark.filterwarnings("ignore")


LENGTH = "data: {batch_size: 4, samples_per_epoch: 8}\ntrainer: {max_steps: 2, max_epochs: 1, limit_val_batches: 0}\n"
"""A configuration's own length, at which its run is whole; the same on a command line would shorten it."""


def fit(stage: int, *arguments: str) -> int:
    return cli.main(["fit", f"--config=configs/stage{stage}.yaml", "--config=short.yaml", *NO_BAR, *arguments])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository's, with a run of each stage in it, and what they printed."""
    write_world(ROOT / "data/micro/shards")
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("configs", "data"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "short.yaml").write_text(LENGTH, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _in_the_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


@pytest.fixture(scope="module")
def first(workplace: Path) -> Path:
    """The checkpoint of a short stage 1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        assert fit(1) == 0
    (path,) = workplace.glob("lightning_logs/*/checkpoints/*.ckpt")
    return path.relative_to(workplace)


def newest(workplace: Path) -> Path:
    return max(workplace.glob("lightning_logs/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def test_stage_1_writes_a_run(workplace: Path, first: Path) -> None:
    run = first.parents[1]
    assert run.parent.name == "lightning_logs"
    assert (run / "config.yaml").is_file() and list(run.glob("events.out.tfevents.*"))
    payload = read_checkpoint(first)
    assert payload["m2chat"]["stage"] == "align" and payload["global_step"] == 2


def test_stage_2_starts_from_it_and_is_evaluated(
    workplace: Path, first: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> str:
        out, err = capfd.readouterr()
        text = out + err + caplog.text
        caplog.clear()
        return text

    assert fit(1, "--trainer.max_steps=1") == 0
    trial = newest(workplace).relative_to(workplace)
    assert read_checkpoint(trial)["run"]["shortened"] == ["trainer.max_steps=1"]
    assert f"Checkpoint: {trial}" in (text := told()) and f"stage2.yaml --model.init_args.init_from {trial}" in text

    assert fit(2) == 0
    text = told()
    assert f"Starting from the weights of {first} (2 steps, cc3m and laion of the world shapes" in text
    assert f"{trial} (1 steps, shortened on the command line by trainer.max_steps=1)" in text
    assert "Next: m2chat chat --model" in text
    second = newest(workplace)
    assert read_checkpoint(second)["m2chat"]["stage"] == "m3ft"

    few = ("--data.test_samples=4", "--model.init_args.evaluation.steps=2", *NO_BAR)
    few += ("--model.init_args.evaluation.max_text_tokens=8",)
    assert cli.main(["test", "--config=configs/eval_mmdialog.yaml", *few]) == 0
    assert f"Evaluating the weights of {second.relative_to(workplace)}" in told()
    results = max(workplace.glob("lightning_logs/*/results.json"), key=lambda path: path.stat().st_mtime_ns)
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["protocol"]["stage"] == "m3ft" and found["metrics"]["bleu_1"]["n"] == 4

    assert cli.main(["test", "--config=configs/eval_cc3m.yaml", "--model=AlignModule", *few]) == 0
    assert f"Evaluating the weights of {first}" in told()


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command which must fail, and returns the one line that says why."""

    def run(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("data.batch_sice", "data.batch_size"),
        ("model.init_args.lamda_text", "lambda_text"),
        ("model.init_args.m3adapter.gate.mdoe", "gate.mode"),
    ],
)
def test_a_misspelt_key(refusal: Callable[..., str], wrong: str, right: str) -> None:
    assert f"{right}'?" in refusal("fit", "--config=configs/stage2.yaml", *SHORT, f"--{wrong}=1")


@pytest.mark.parametrize("name", ["language_model", "adapter", "vision_encoder", "image_decoder"])
def test_a_missing_weight_folder(refusal: Callable[..., str], name: str) -> None:
    option = f"--model.init_args.backbone.{name}=data/nowhere"
    message = refusal("fit", "--config=configs/stage1.yaml", *SHORT, *NO_BAR, option)
    assert name in message and "data/nowhere" in message


def test_a_checkpoint_of_the_wrong_stage(refusal: Callable[..., str], first: Path) -> None:
    wrong = "stage 'align', but stage 'm3ft' is wanted"
    assert wrong in refusal("fit", "--config=configs/stage2.yaml", f"--ckpt_path={first}")
    assert wrong in refusal("test", "--config=configs/eval_mmdialog.yaml", f"--ckpt_path={first}")
    assert "there is no checkpoint file nowhere.ckpt" in refusal(
        "fit", "--config=configs/stage2.yaml", *SHORT, *NO_BAR, "--model.init_args.init_from=nowhere.ckpt"
    )


def test_an_empty_shard_folder(refusal: Callable[..., str], tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text(f"data: {{train: [{{name: mine, path: {tmp_path}}}]}}\n", encoding="utf-8")
    message = refusal("fit", "--config=configs/stage1.yaml", f"--config={over}", *NO_BAR)
    assert str(tmp_path) in message and "without .tar files" in message


def test_the_metrics_come_every_so_many_steps(workplace: Path, first: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code = cli.main(
        [
            "fit", "--config=configs/stage2.yaml", "--config=configs/overlays/every_n_steps.yaml", *NO_BAR,
            "--trainer.val_check_interval=2", "--trainer.max_steps=4", "--trainer.max_epochs=1",
            "--data.batch_size=4", "--data.samples_per_epoch=32", "--data.val_samples=2",
            "--model.init_args.evaluation.steps=2", "--model.init_args.evaluation.max_text_tokens=8",
            "--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=.", "--trainer.logger.name=every",
        ]
    )  # fmt: skip
    assert code == 0
    (folder,) = (workplace / "every").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    (curve,) = (name for name in tags["scalars"] if name.endswith("clip_score"))
    assert [event.step for event in events.Scalars(curve)] == [1, 3]
    assert any(len(events.Images(name)) == 2 for name in tags["images"])
    assert any("replies" in name for name in tags["tensors"])
