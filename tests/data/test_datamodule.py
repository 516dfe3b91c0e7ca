from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from m2chat.batch import Batch
from m2chat.data import datamodule
from m2chat.data.datamodule import M2ChatDataModule
from m2chat.data.dataset import SourceConfig
from m2chat.data.shards import write_groups
from m2chat.errors import UserError

Steps = list[tuple[int, list[str]]]


class Recorder(LightningModule):
    """Learns nothing and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps: Steps = []
        self.evaluated: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.steps.append((self.current_epoch, names_of(batch)))
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated += names_of(batch)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveEverywhere(Callback):
    """Saves in every hook in which checkpoints are saved, with the number of steps done before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, {}

    def _save(self, trainer: Trainer, module: Recorder, hook: str) -> None:
        if not trainer.sanity_checking:
            path = self.folder / f"{hook}-{len(module.steps)}.ckpt"
            trainer.save_checkpoint(path)
            self.saved[path] = len(module.steps)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self._save(trainer, module, "start")

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        self._save(trainer, module, "batch")

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        self._save(trainer, module, "validation")

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._save(trainer, module, "epoch")


def names_of(batch: Batch) -> list[str]:
    return [f"{sample.id}#{turn}" for sample, turn in zip(batch.samples, batch.turns, strict=True)]


def data_of(shards: Path, backbones: Path, **options: Any) -> M2ChatDataModule:
    sources = [SourceConfig("captions", str(shards / "captions"), 2.0), SourceConfig("talk", str(shards / "talk"))]
    options = {"train": sources, "samples_per_epoch": 18, "batch_size": 4, "max_tokens": 300, **options}
    options.setdefault("check_leaks", False)  # most of these tests are about the order, on very few samples
    folder = str(backbones)
    return M2ChatDataModule(
        language_model=folder, vision_encoder=folder, image_decoder=folder, num_image_tokens=4, image_size=8, **options
    )


def fit(data: M2ChatDataModule, root: Path, ckpt: Path | None = None, **options: Any) -> Steps:
    module, save = options.pop("module", Recorder()), options.pop("save", None)
    options = {"max_epochs": 3, "callbacks": [], **options}
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=False)
    if save is not None:
        trainer.save_checkpoint(save)
    return module.steps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limits", [{}, {"limit_train_batches": 3}, {"accumulate_grad_batches": 2}])
def test_resuming_from_any_checkpoint_goes_on_exactly(
    shards: Path, backbones: Path, tmp_path: Path, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datamodule, "refuse_overlap", lambda configs: None)  # what is validated on does not matter
    val = [SourceConfig("val", str(shards / "captions"))]
    options = {"val": val, "val_samples": 3}
    save = SaveEverywhere(tmp_path)
    whole = fit(data_of(shards, backbones, **options), tmp_path, callbacks=[save], val_check_interval=2, **limits)
    assert len(whole) == (9 if "limit_train_batches" in limits else 15)
    assert len({tuple(names) for _, names in whole}) == len(whole)
    window, epoch = limits.get("accumulate_grad_batches", 1), len(whole) // 3
    for path, done in save.saved.items():
        done -= done % epoch % window  # no checkpoint holds the gradients of an unfinished window
        rest = fit(data_of(shards, backbones, **options), tmp_path, path, val_check_interval=2, **limits)
        assert rest == whole[done:], path.name


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_may_be_interrupted_at_once(shards: Path, backbones: Path, tmp_path: Path) -> None:
    whole = fit(data_of(shards, backbones), tmp_path, callbacks=[SaveEverywhere(tmp_path)])
    for name in ("batch-5", "epoch-5", "batch-7"):
        again = SaveEverywhere(tmp_path / name)
        fit(data_of(shards, backbones), tmp_path, tmp_path / f"{name}.ckpt", callbacks=[again])
        rest = fit(data_of(shards, backbones), tmp_path, tmp_path / name / "start-0.ckpt")
        assert rest == whole[int(name[-1]) :], name


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_reads_whole_shards_resumes_exactly(
    server: tuple[str, type[Any]], shards: Path, backbones: Path, tmp_path: Path
) -> None:
    remote = SourceConfig("captions", server[0] + "/captions/cc-00000{0..3}.tar", 2.0, shuffle_buffer=5)
    options = {"train": [remote, SourceConfig("talk", str(shards / "talk"))], "cache_dir": str(tmp_path / "cache")}
    save = SaveEverywhere(tmp_path)
    whole = fit(data_of(shards, backbones, **options), tmp_path, callbacks=[save])
    assert len(whole) == 15 and len({name for _, names in whole for name in names}) > 37
    for number, (name, workers) in enumerate({"batch-2": 2, "epoch-5": 0, "batch-8": 1, "batch-14": 0}.items()):
        cache = tmp_path / "cache" if number % 2 else tmp_path / name  # on a machine that knows the shards, or not
        changed = {**options, "num_workers": workers, "cache_dir": str(cache)}
        rest = fit(data_of(shards, backbones, **changed), tmp_path, tmp_path / f"{name}.ckpt")
        assert rest == whole[int(name.partition("-")[2]) :], name


def test_large_jpegs_may_be_decoded_at_a_smaller_scale(backbones: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 256), (200, 30, 30)).save(buffer, "JPEG")
    write_groups([("one", {"jpg": buffer.getvalue(), "txt": b"a red wall"})], tmp_path, "x", 1)
    batches = []
    for scaled, shape in ((False, (256, 320)), (True, (32, 40))):
        train = [SourceConfig("x", str(tmp_path))]
        data = data_of(tmp_path, backbones, train=train, samples_per_epoch=1, scaled_decoding=scaled)
        (batch,) = data.train_dataloader()
        assert batch.samples[0].images[0].pixels.shape[:2] == shape
        batches.append(batch)
    assert torch.equal(batches[0].time_ids, batches[1].time_ids)
    assert (batches[0].target_pixels.int() - batches[1].target_pixels.int()).abs().max() <= 2


class Breaks(Callback):
    """Stops the run in the middle of a step, before or after its forward pass, and saves as a crash would."""

    def __init__(self, path: Path, step: int, hook: str) -> None:
        self.path, self.step = path, step
        setattr(self, hook, self._break)

    def _break(self, trainer: Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("interrupted")

    def on_exception(self, trainer: Trainer, module: Any, error: BaseException) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_optimizer_step"])
@pytest.mark.parametrize("step", [0, 4, 5, 7])
def test_a_step_that_was_not_finished_is_repeated(
    shards: Path, backbones: Path, tmp_path: Path, step: int, hook: str
) -> None:
    path = tmp_path / "broken.ckpt"
    with pytest.raises(RuntimeError):
        fit(data_of(shards, backbones), tmp_path, callbacks=[Breaks(path, step, hook)])
    assert fit(data_of(shards, backbones), tmp_path, path) == fit(data_of(shards, backbones), tmp_path)[step:]


@pytest.mark.filterwarnings("ignore")
def test_workers_change_nothing(shards: Path, backbones: Path, tmp_path: Path) -> None:
    save = SaveEverywhere(tmp_path)
    whole = fit(data_of(shards, backbones), tmp_path, callbacks=[save])
    assert fit(data_of(shards, backbones, num_workers=2), tmp_path) == whole
    middle = tmp_path / "batch-7.ckpt"
    assert fit(data_of(shards, backbones, num_workers=2), tmp_path, middle) == whole[7:]
    state = torch.load(middle, weights_only=True)["M2ChatDataModule"]
    assert (state["epoch"], state["samples_seen"], state["batches_seen"]) == (1, 8, 2)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_saved_after_training_knows_its_place(shards: Path, backbones: Path, tmp_path: Path) -> None:
    whole = fit(data_of(shards, backbones), tmp_path)
    for steps in (3, 5, 7):
        first = fit(data_of(shards, backbones), tmp_path, max_steps=steps, save=tmp_path / "after.ckpt")
        assert first + fit(data_of(shards, backbones), tmp_path, tmp_path / "after.ckpt") == whole


class ForgetsLikeFormerVersions(Callback):
    """Saves after some steps in all, with the place that former versions wrote after a second resume."""

    def __init__(self, step: int, path: Path, **place: Any) -> None:
        self.step, self.path, self.place = step, path, place

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            checkpoint = torch.load(self.path, weights_only=True)
            del checkpoint["M2ChatDataModule"]["version"]
            checkpoint["M2ChatDataModule"] |= self.place
            torch.save(checkpoint, self.path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("step", "place", "wrong"),
    [
        (4, {"samples_seen": 24, "batches_seen": 6}, True),
        (4, {"epoch": 1, "samples_seen": 0, "batches_seen": 0, "before": 18}, True),
        (8, {"epoch": 2, "samples_seen": 0, "batches_seen": 0, "before": 36}, True),
        (7, {}, False),
        (10, {}, False),
    ],
)
def test_places_of_former_versions_are_mended(
    shards: Path,
    backbones: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    step: int,
    place: dict[str, Any],
    wrong: bool,
) -> None:
    path = tmp_path / "former.ckpt"
    whole = fit(data_of(shards, backbones), tmp_path, callbacks=[ForgetsLikeFormerVersions(step, path, **place)])
    assert fit(data_of(shards, backbones), tmp_path, path) == whole[step:]
    assert ("lost count" in caplog.text) == wrong


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_is_left_as_it_was(shards: Path, backbones: Path, tmp_path: Path) -> None:
    save = SaveEverywhere(tmp_path)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=2, callbacks=[save],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Recorder(), datamodule=data_of(shards, backbones))
    assert trainer.callbacks == [save]


@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_validation_is_not_finished_with_other_replies(
    shards: Path, backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datamodule, "refuse_overlap", lambda configs: None)
    path = tmp_path / "broken.ckpt"
    options = {"val": [SourceConfig("val", str(shards / "captions"))], "val_samples": 6, "eval_batch_size": 2}

    class SavesInside(Recorder):
        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if self.global_step == 2 and batch_idx == 1:
                self.trainer.save_checkpoint(path)

    more = {"val_check_interval": 2, "num_sanity_val_steps": 0, "max_epochs": 1}
    whole = fit(data_of(shards, backbones, **options), tmp_path, module=SavesInside(), **more)
    module = Recorder()
    assert fit(data_of(shards, backbones, **options), tmp_path, path, module=module, **more) == whole[2:]
    assert len(module.evaluated) == 6 and len({*module.evaluated}) == 6  # those after step 4


@pytest.mark.filterwarnings("ignore")
def test_a_second_fit_goes_on_with_the_epochs(shards: Path, backbones: Path, tmp_path: Path) -> None:
    data = data_of(shards, backbones)
    first = fit(data, tmp_path, max_epochs=1)
    assert fit(data, tmp_path, max_epochs=1) == first


@pytest.mark.filterwarnings("ignore")
def test_another_data_set_is_noticed(
    shards: Path, backbones: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(data_of(shards, backbones), tmp_path, callbacks=[SaveEverywhere(tmp_path)], max_epochs=1)
    fit(data_of(shards, backbones), tmp_path, tmp_path / "batch-2.ckpt", max_epochs=1)
    assert "with another" not in caplog.text
    fit(data_of(shards, backbones, seed=5), tmp_path, tmp_path / "batch-2.ckpt", max_epochs=1)
    assert "with another seed" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_evaluation_goes_through_every_reply(shards: Path, backbones: Path, tmp_path: Path) -> None:
    data = data_of(shards, backbones, train=None, test=[SourceConfig("talk", str(shards / "talk"))], eval_batch_size=4)
    module = Recorder()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.test(module, datamodule=data, verbose=False)
    assert module.evaluated == [f"talk/{i}#{turn}" for i in range(9) for turn in (1, 3)]


def test_ranks_take_their_share(shards: Path, backbones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(rank: int, ranks: int, batch_size: int) -> list[list[str]]:
        monkeypatch.setattr(datamodule, "_rank_of_ranks", lambda: (rank, ranks))
        return [names_of(batch) for batch in data_of(shards, backbones, batch_size=batch_size).train_dataloader()]

    pairs = zip(batches(0, 2, 2), batches(1, 2, 2), strict=True)
    assert [left + right for left, right in pairs] == batches(0, 1, 4)


def test_seen_data_is_no_validation(shards: Path, backbones: Path) -> None:
    with pytest.raises(UserError, match="train and val share 4 shards"):
        data_of(shards, backbones, val=[SourceConfig("v", str(shards / "cap*" / "*.tar"))]).train_dataloader()


def test_seen_samples_are_no_validation_either(shards: Path, backbones: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.tar"
    copy.write_bytes((shards / "talk" / "talk-000000.tar").read_bytes())
    data = data_of(shards, backbones, val=[SourceConfig("v", str(copy))], check_leaks=True)
    with pytest.raises(UserError, match=r"train and val share 5 sample\(s\)"):
        data.prepare_data()
    data.check_leaks = False
    data.prepare_data()


def test_a_generated_world_is_made_on_first_use(
    shards: Path, backbones: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Path] = []
    monkeypatch.setattr("m2chat.worlds.shapes.shards.write_world", made.append)
    data_of(shards, backbones).prepare_data()
    assert made == []
    world = SourceConfig("v", str(tmp_path / "root" / "cc3m" / "val"), world="shapes")
    data_of(shards, backbones, val=[world], check_leaks=False).prepare_data()
    assert made == [tmp_path / "root"]
    with pytest.raises(UserError, match=r"path='x' of the generated world 'shapes' must read ROOT/<data set>/<split>"):
        SourceConfig("v", "x", world="shapes").generate()
    with pytest.raises(UserError, match=r"world='moon' is no generated world: choose one of .*shapes"):
        SourceConfig("v", "a/b/c", world="moon").generate()


@pytest.mark.filterwarnings("ignore")
def test_it_is_configured_from_yaml() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(M2ChatDataModule, "data")
    parsed = parser.parse_object(
        {"data": {"train": [{"name": "cc", "path": "x", "weight": 0.5, "kinds": ["caption"]}]}}
    )
    data = parser.instantiate_classes(parsed).data
    assert data.configs["train"] == [SourceConfig("cc", "x", 0.5, ["caption"])]


def test_a_source_may_be_left_out_by_name() -> None:
    sources = [SourceConfig("edit", "a"), SourceConfig("story", "b")]
    module = M2ChatDataModule(train=sources, leave_out=["edit"])
    assert [source.name for source in module.configs["train"]] == ["story"]
    with pytest.raises(UserError, match=r"leave_out names edits, but data\.train has edit, story"):
        M2ChatDataModule(train=sources, leave_out=["edits"])
    M2ChatDataModule(test=sources, leave_out=["edit"])  # an evaluation under the same overlay trains on nothing
