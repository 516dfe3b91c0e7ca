"""Stage 1 from kept outputs of the frozen networks: the same losses, without the networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from m2chat.commands import main
from m2chat.data.dataset import SourceConfig
from m2chat.data.feature_cache import FeatureOrigin
from m2chat.data.feature_file import FeaturePart
from m2chat.data.feature_form import Form, rounded
from m2chat.data.shards import write_shards
from m2chat.errors import UserError
from m2chat.models.absent import Absent
from m2chat.models.checkpoints import trainable_state_dict
from m2chat.models.fingerprints import Fingerprints
from m2chat.training.config import EvalConfig
from m2chat.training.strategy import M2ChatFSDPStrategy

ROOT = Path(__file__).parents[2]
STAGE_2 = ("dialogue", "edit", "story")
STEPS = 6  # epochs have 4


@pytest.fixture(scope="module")
def val(micro: Any, tmp_path_factory: pytest.TempPathFactory) -> SourceConfig:
    """A few caption pairs to validate on."""
    source = SourceConfig("caption", str(micro.shards / "caption"))
    from m2chat.data.dataset import Source

    opened, folder = Source(source), tmp_path_factory.mktemp("val")
    write_shards([replace(opened.read(0, k), id=f"val/{k}") for k in range(4)], folder)
    return SourceConfig("seen", str(folder))


def build(micro: Any, val: SourceConfig, out: Path, *more: str) -> int:
    """Runs `m2chat data features` on the shards of these tests."""
    train = {"name": "caption", "path": str(micro.shards / "caption")}
    settings = {"train": [train], "val": [{"name": val.name, "path": val.path}], "max_tokens": 256}
    arguments = [f"--data.{name}={json.dumps(value)}" for name, value in settings.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # paths of the backbones are relative
        given = ["--config", "configs/stage1.yaml", str(out), "--chunk", "10", "--batch", "4", "--device", "cpu"]
        return main(["data", "features", *given, *more, *arguments])


@pytest.fixture(scope="module")
def cache(micro: Any, val: SourceConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "whole"
    assert build(micro, val, out) == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.filterwarnings("ignore")
def test_losses_steps_and_checkpoints_are_those_of_a_run_without(micro: Any, cache: Path, tmp_path: Path) -> None:
    whole = micro.fit("align", tmp_path, STEPS, save=(5, tmp_path / "whole.ckpt"), ddpm_samples=4)
    data = {"features": str(cache)}
    save = tmp_path / "kept.ckpt"
    kept = micro.fit("align", tmp_path, STEPS, save=(5, save), ddpm_samples=4, data=data, workers=2)
    assert len(kept.losses) == STEPS and len({tuple(losses.values()) for losses in kept.losses}) == STEPS
    for ours, theirs in zip(kept.losses, whole.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    model = kept.module.model
    networks = (model.llama, model.clip, model.visual_query, model.decoder.text_encoder, model.decoder.text_encoder_2)
    assert all(isinstance(part, Absent) for part in (*networks, model.decoder.vae.encoder))
    loaded = sum(p.numel() for p in model.parameters())
    used = [model.m3adapter, model.decoder.unet, model.decoder.vae.decoder, model.decoder.vae.post_quant_conv]
    assert loaded == sum(p.numel() for part in used for p in part.parameters())
    ours, theirs = (trainable_state_dict(run.module.model) for run in (kept, whole))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    # Resumed, with and without the cache, and with another number of workers.
    rest = micro.fit("align", tmp_path, STEPS, ckpt=save, ddpm_samples=4, data=data)
    assert rest.losses == kept.losses[5:]
    without = micro.fit("align", tmp_path, STEPS, ckpt=save, ddpm_samples=4)
    assert without.losses[0] == pytest.approx(kept.losses[5], rel=1e-5)
    checkpoints = [torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("whole", "kept")]
    shapes = [{name: tensor.shape for name, tensor in each["state_dict"].items()} for each in checkpoints]
    assert shapes[0] == shapes[1] and checkpoints[0].keys() == checkpoints[1].keys()
    for name in ("m2chat", "config", "M2ChatDataModule"):
        assert checkpoints[0][name] == checkpoints[1][name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_sharded_ranks_train_from_it(
    micro: Any, cache: Path, on_two_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    data = {"features": str(cache)}

    def task() -> list[dict[str, float]]:
        run = micro.fit("align", tmp_path, 3, batch_size=3, strategy=M2ChatFSDPStrategy(), data=data)
        assert isinstance(run.module.model.llama, Absent)
        return run.losses  # type: ignore[no-any-return]

    alone = micro.fit("align", tmp_path, 3, data=data)
    for ours, theirs in zip(on_two_ranks(task), alone.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_validation_has_the_same_pictures_and_losses(micro: Any, val: SourceConfig, cache: Path) -> None:
    replies, losses = [], []
    for features in (None, str(cache)):
        module = micro.module("align", evaluation=EvalConfig(steps=2))
        data = micro.data("align", features=features, val=[val])
        trainer: Any = SimpleNamespace(
            datamodule=data, state=SimpleNamespace(fn=TrainerFn.FITTING), ckpt_path=None, testing=False,
            validating=False, precision="32-true", limit_val_batches=1.0,
            world_size=2,  # where a validation logs no loss
        )  # fmt: skip
        module._trainer = trainer
        module.configure_model()
        module.eval()
        batch = next(iter(data.val_dataloader())).ready()
        assert isinstance(module.model.llama, Absent) == bool(features) == (batch.features is not None)
        replies.append(module.validation_step(batch, 0))
        trainer.validating = True
        losses.append({name: float(value.detach()) for name, value in module.loss_parts(batch).items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[0]["loss_align"] > 0
    for plain, kept in zip(*replies, strict=True):
        assert (plain.id, plain.reference.segments) == (kept.id, kept.reference.segments)
        assert plain.generated.segments == kept.generated.segments and plain.meta == kept.meta
        ours, theirs = (reply.generated.pictures[0].astype(int) for reply in (kept, plain))
        assert ours.std() > 0 and np.abs(ours - theirs).max() <= 1


def test_a_build_goes_on_and_is_shared_with_the_same_bytes(
    micro: Any, val: SourceConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FeaturePart.write

    def dies_in_the_second(self: FeaturePart, chunk: int, *arguments: Any) -> None:
        if chunk == 1:
            (self.folder / ".000001.bin.1.ab.part").write_bytes(b"half")  # as a killed process leaves it
            raise KeyboardInterrupt
        write(self, chunk, *arguments)

    monkeypatch.setattr(FeaturePart, "write", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        build(micro, val, tmp_path / "out")
    written: list[tuple[str, int]] = []

    def notes(self: FeaturePart, chunk: int, *arguments: Any) -> None:
        written.append((self.folder.name, chunk))
        write(self, chunk, *arguments)

    monkeypatch.setattr(FeaturePart, "write", notes)
    with pytest.raises(UserError, match=r"not finished: 2 of 3 files of train/caption.*again, which goes on"):
        fit_from(micro, tmp_path / "out")
    assert build(micro, val, tmp_path / "out", "--shard", "2/2") == 0
    assert build(micro, val, tmp_path / "out", "--shard", "1/2") == 0
    assert written == [("train-caption", 1), ("val-seen", 0), ("train-caption", 2)]
    assert contents(tmp_path / "out") == contents(cache)


def fit_from(micro: Any, cache: Path, **data: Any) -> Any:
    module = micro.module("align")
    return micro.data("align", features=str(cache), **data).open_features(
        "align", module.backbones().outputs, module.m3adapter.layers
    )


def test_other_inputs_are_refused_by_name(micro: Any, val: SourceConfig, cache: Path, tmp_path: Path) -> None:
    assert fit_from(micro, cache) is not None
    for data, message in (
        ({"max_tokens": 200}, r"data\.max_tokens \(256, now 200\)"),
        ({"prompt": "chat"}, r"chat"),
        ({"image_size": 64}, r"data\.image_size \(32, now 64\)"),
        ({"random_crop": True}, r"data\.random_crop to false"),
        ({"train": [SourceConfig("caption", val.path)]}, r"the data of train/caption"),
        ({"train": [SourceConfig("more", val.path)]}, r"the data of train/more \(not in the cache\)"),
    ):
        with pytest.raises(UserError, match=message):
            fit_from(micro, cache, **data)
    origin = FeatureOrigin("align", {"language_model": "a", "vae": "b"}, {}, {"train/x": "1", "val/x": "2"})
    other = FeatureOrigin("m3ft", {"language_model": "a", "vae": "c", "unet": "d"}, {}, {"train/x": "1"})
    assert origin.misfits(other) == ["the stage ('align', now 'm3ft')", "the vae"]
    with pytest.raises(UserError, match=r"is no feature cache: make one with `m2chat data features"):
        fit_from(micro, tmp_path)
    with pytest.raises(UserError, match=r"stages 1 and 2 alone train from a feature cache"):
        micro.data("align", features=str(cache)).train_dataloader()  # no module has opened it
    with pytest.raises(UserError, match=r"the stage \('align', now 'm3ft'\)"):
        micro.data("m3ft", features=str(cache)).open_features("m3ft", {}, [-1])


@pytest.mark.parametrize(
    ("setting", "folder", "file", "entry", "value", "named"),
    [
        ("language_model", "llama", "config.json", "rms_norm_eps", 0.1, "the language_model"),
        ("image_decoder", "sdxl", "vae/config.json", "scaling_factor", 0.5, "the vae"),
        ("image_decoder", "sdxl", "text_encoder/config.json", "layer_norm_eps", 0.1, "the text_encoder"),
        ("vision_encoder", "clip", "open_clip_config.json", "", None, "the vision_encoder"),
    ],
)
def test_the_same_tensors_read_otherwise_are_another_network(
    micro: Any, cache: Path, tmp_path: Path, setting: str, folder: str, file: str, entry: str, value: Any, named: str
) -> None:
    copy = tmp_path / folder
    shutil.copytree(ROOT / "data" / "micro" / folder, copy)
    (copy / "SHA256SUMS").unlink(missing_ok=True)
    described = json.loads((copy / file).read_text())
    if entry:
        assert described[entry] != value
        described[entry] = value
    else:
        described["model_cfg"]["quick_gelu"] = not described["model_cfg"].get("quick_gelu", False)
    (copy / file).write_text(json.dumps(described))
    module = micro.module("align")
    module.backbone = replace(module.backbone, **{setting: str(copy)})
    data = micro.data("align", features=str(cache))
    networks = Fingerprints(module.backbone).outputs
    with pytest.raises(UserError, match=named):
        data.open_features("align", networks, module.m3adapter.layers)


def test_a_build_that_was_killed_at_its_very_start_goes_on(
    micro: Any, val: SourceConfig, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "begun"
    for path in cache.rglob("index*"):
        target = out / path.relative_to(cache)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert any(out.rglob("index*")) and not (out / "features.json").exists()
    assert build(micro, val, out) == 0
    assert contents(out) == contents(cache)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert build(micro, val, tmp_path / "other") == 2


def test_a_cache_is_not_given_up_for_one_that_does_not_fit(
    micro: Any, val: SourceConfig, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "kept"
    shutil.copytree(cache, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=-(10**9)))
        assert build(micro, val, out, "--replace", "--dtype", "bfloat16") == 2
    assert contents(out) == contents(cache)


def test_a_cache_of_other_inputs_is_made_anew_if_that_is_wanted(
    micro: Any, val: SourceConfig, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(cache, out)
    assert build(micro, val, out, "--replace") == 0 and "made anew" not in capsys.readouterr().out
    assert contents(out) == contents(cache)
    manifest = out / "features.json"
    manifest.write_text(manifest.read_text().replace('"dtype": "float32"', '"dtype": "int8"'))
    assert build(micro, val, out) == 2
    assert "--replace" in capsys.readouterr().err
    (out / "train-caption" / "000001.bin").unlink()
    assert build(micro, val, out, "--replace") == 0 and "made anew" in capsys.readouterr().out
    assert contents(out) == contents(cache)
    (tmp_path / "mine").write_text("not a cache")
    assert build(micro, val, tmp_path, "--replace") == 2 and (tmp_path / "mine").is_file()


def test_a_flipped_bit_is_never_trained_on(micro: Any, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "bad")
    path = tmp_path / "bad" / "train-caption" / "000001.bin"
    data = bytearray(path.read_bytes())
    for place in (200, len(data) - 200):  # in the records, and in the rows behind them
        flipped = bytearray(data)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        module_data = micro.data("align", features=str(tmp_path / "bad"))
        module = micro.module("align")
        module_data.open_features("align", module.backbones().outputs, module.m3adapter.layers)
        with pytest.raises(UserError, match=r"000001\.bin is damaged.*remove the file and run `m2chat data features`"):
            list(module_data.train_dataloader())


def test_a_full_disk_and_wrong_options_are_refused(
    micro: Any, val: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        assert build(micro, val, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "1 kB are free there" in error and "with --dtype int8 --text recomputed" in error
    assert not (tmp_path / "out").exists()
    assert build(micro, val, tmp_path / "out", "--shard", "3/2") == 2
    assert "--shard 3/2: write I/N" in capsys.readouterr().err
    monkeypatch.chdir(ROOT)
    for arguments, message in (
        (["configs/stage0.yaml", "out"], "trains DescribeModule, which has no feature cache"),
        (["configs/stage1.yaml", "out", "--data.flip=0.5"], "data.flip to 0"),
        (["configs/stage1.yaml", "--data.train=[{name: a, path: b}]", "out"], "OUT comes before the settings"),
    ):
        assert main(["data", "features", "--config", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0.0), ("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_numbers_come_back_within_their_precision(dtype: str, error: float) -> None:
    form = Form(dtype, True, 2, 16, 4, 8, 6, (4, 2, 2))
    values = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(0)) * 10
    values[0] = 0
    rows = np.zeros(5, form.row)
    form.put(rows, "values", values.numpy())
    bits = form.get(rows, "values")
    back = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float() if dtype == "bfloat16" else bits
    largest = values.abs().amax(-1, keepdim=True) if dtype == "int8" else values.abs()
    assert bool(((torch.as_tensor(back) - values).abs() <= error * largest * 1.001).all())
    assert torch.equal(torch.from_numpy(rounded(values.numpy()).view(np.int16)), values.bfloat16().view(torch.int16))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_small_cache_trains_nearly_the_same(micro: Any, val: SourceConfig, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert build(micro, val, out, "--dtype", "int8", "--text", "recomputed", "--trainer.limit_val_batches=0") == 0
    sizes = [sum(map(len, contents(folder / "train-caption").values())) for folder in (out, cache)]
    assert sizes[0] < sizes[1] / 4
    kept = micro.fit("align", tmp_path, 3, data={"features": str(out)})
    whole = micro.fit("align", tmp_path, 3, data={"features": str(cache)})
    assert not isinstance(kept.module.model.decoder.text_encoder, Absent)
    for ours, theirs in zip(kept.losses, whole.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=0.01) and ours != theirs


@pytest.mark.filterwarnings("ignore")
def test_stage_2_keeps_what_stays_frozen(micro: Any, tmp_path: Path) -> None:
    sources = [{"name": kind, "path": str(micro.shards / kind)} for kind in STAGE_2]
    out = tmp_path / "features"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        given = ["--config", "configs/stage2.yaml", str(out), "--chunk", "16", "--batch", "5", "--device", "cpu"]
        assert main(["data", "features", *given, f"--data.train={json.dumps(sources)}"]) == 0
    whole = micro.fit("m3ft", tmp_path, 3, ddpm_samples=4)
    kept = micro.fit("m3ft", tmp_path, 3, ddpm_samples=4, data={"features": str(out), "max_tokens": 256})
    for ours, theirs in zip(kept.losses, whole.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    model = kept.module.model
    parts = (model.clip, model.decoder.text_encoder, model.decoder.text_encoder_2, model.decoder.vae.encoder)
    assert all(isinstance(part, Absent) for part in parts) and not isinstance(model.llama, Absent)
    assert trainable_state_dict(model).keys() == trainable_state_dict(whole.module.model).keys()
    module = micro.module("m3ft")
    with pytest.raises(UserError, match=r"the stage \('m3ft', now 'align'\)"):
        micro.data("m3ft", features=str(out)).open_features("align", module.backbones().outputs, [-1])
