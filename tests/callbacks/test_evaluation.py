"""The evaluation callbacks in a real Trainer, with a module that only hands out predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from m2chat.callbacks.base import store_of
from m2chat.callbacks.clip_score import CLIPScore
from m2chat.callbacks.fid import FID
from m2chat.callbacks.inter_rel import InterRel
from m2chat.callbacks.judge import Judge
from m2chat.callbacks.predictions import Predictions
from m2chat.callbacks.sample_images import SampleImages
from m2chat.callbacks.text_overlap import TextOverlap
from m2chat.errors import UserError
from m2chat.metrics.extractors import MicroExtractor
from m2chat.metrics.feature_net import FeatureNet
from m2chat.schema import Prediction, Reply, Segment
from m2chat.worlds.shapes.captions import caption_of
from m2chat.worlds.shapes.scenes import COLOURS, render, scenes_of_split

_COLOURS = np.array(list(COLOURS.values()), np.float64)


class ColourEncoder:
    """Sees which colours a text names, and which pixels of a picture have them."""

    name = "colours"

    def __init__(self) -> None:
        self.released = 0

    def to(self, device: torch.device) -> None: ...

    def release(self) -> None:
        self.released += 1

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.array([[text.split().count(name) + 0.01 for name in COLOURS] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_image(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        rows = []
        for picture in pictures:
            distance = np.square(picture.reshape(-1, 1, 3) - _COLOURS).sum(2)
            rows.append(np.bincount(distance.argmin(1), minlength=len(COLOURS)) + 0.01)
        array = np.array(rows, np.float32)
        return array / np.linalg.norm(array, axis=1, keepdims=True)


def oracle_prediction(index: int) -> Prediction:
    """A reply that is exactly the true one; every third says something without a picture."""
    scene = scenes_of_split("test", 1)[index]
    if index % 3 == 2:
        reply = Reply((Segment(f"it is {scene.first.colour} , i think"),), (None,))
        return Prediction(f"s{index}#1", "instruct", "test", "which colour ?", reply, reply)
    segment = Segment(f"here is a {scene.first.colour} one", caption_of(scene))
    reply = Reply((segment,), (render(scene),))
    meta = {"scene": scene.attributes, "omitted": ["background"]}
    return Prediction(f"s{index}#1", "dialogue", "test", "show me", reply, reply, render(scene), meta)


def worse(prediction: Prediction) -> Prediction:
    """The same with a blank picture and other words."""
    reply = prediction.reference
    images = tuple(np.full_like(image, 245) if image is not None else None for image in reply.images)
    segments = tuple(Segment("yes indeed", item.caption) for item in reply.segments)
    return Prediction(
        prediction.id, prediction.kind, "test", prediction.request, reply, Reply(segments, images), meta=prediction.meta
    )


class Replies(LightningModule):
    """Learns nothing; its replies are made up."""

    def __init__(self, make: Callable[[int], Prediction] | None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.make = make

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self.weight.sum() ** 2

    def validation_step(self, batch: torch.Tensor, _: int) -> list[Prediction] | None:
        return [self.make(int(i)) for i in batch] if self.make is not None else None

    def test_step(self, batch: torch.Tensor, _: int) -> list[Prediction] | None:
        self.log("test/loss", 0.25, batch_size=len(batch))
        return self.validation_step(batch, _)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def protocol(self) -> dict[str, Any]:
        return {"steps": 20, "guidance": 5.0}


@pytest.fixture(scope="module")
def fid_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fid")
    torch.manual_seed(0)
    FeatureNet({"shape": 4}, num_features=4, width=8).save(folder)
    return folder


def callbacks(fid_folder: Path) -> list[Callback]:
    encoder = ColourEncoder()
    metrics = [CLIPScore(encoder), FID(MicroExtractor(str(fid_folder))), InterRel(encoder), TextOverlap(), Judge()]
    return [*metrics, SampleImages(count=3), Predictions("mmdialog", {"layout": "free"})]


def run(
    folder: Path, parts: list[Callback], make: Callable[[int], Prediction] | None, *, fit: bool = False,
    samples: Sequence[int] = range(12), batch: int = 4, **options: Any,
) -> tuple[Trainer, Replies]:  # fmt: skip
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=TensorBoardLogger(folder, ""), callbacks=parts,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip
    module = Replies(make)
    loader: Any = DataLoader(list(samples), batch_size=batch)
    if fit:
        trainer.fit(module, loader, loader)
    else:
        trainer.test(module, loader, verbose=False)
    return trainer, module


def read(trainer: Trainer) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(str(trainer.log_dir)) / "results.json").read_text())
    return content


def test_true_replies_reach_every_ceiling(tmp_path: Path, fid_folder: Path) -> None:
    trainer, _ = run(tmp_path, callbacks(fid_folder), oracle_prediction)
    content = read(trainer)
    values = {name: item["value"] for name, item in content["metrics"].items()}
    for name in ("clip_i", "bleu_1", "bleu_2", "rouge_l", "mm_relevance", "all_right", "scene_right", "omitted_right"):
        assert values[name] == pytest.approx(100.0), name
    assert values["fid_micro"] == pytest.approx(0.0, abs=1e-6)
    assert values["clip_score"] == pytest.approx(values["clip_score_oracle"])
    assert values["clip_score"] > values["clip_score_shuffled"] + 20
    assert values["inter_rel"] == pytest.approx(values["inter_rel_oracle"])
    assert values["inter_rel_undefined"] == 4
    assert values["pictures_missing"] == 0
    assert content["metrics"]["clip_score"]["n"] == 8
    assert content["metrics"]["bleu_1"]["n"] == 12
    assert content["metrics"]["bleu_1/dialogue"]["n"] == 8
    assert content["metrics"]["bleu_1/instruct"]["n"] == 4
    assert content["metrics"]["loss"] == {"value": 0.25, "n": None, "low": None, "high": None}
    low, high = (content["metrics"]["clip_score"][end] for end in ("low", "high"))
    assert low < values["clip_score"] < high
    protocol = content["protocol"]
    assert (protocol["dataset"], protocol["layout"], protocol["steps"]) == ("mmdialog", "free", 20)
    assert protocol["clip_score_encoder"] == "colours"
    assert "tok:13a" in protocol["bleu_signature"]["bleu_2"]


def test_worse_replies_score_lower(tmp_path: Path, fid_folder: Path) -> None:
    trainer, _ = run(tmp_path, callbacks(fid_folder), lambda index: worse(oracle_prediction(index)))
    values = {name: item["value"] for name, item in read(trainer)["metrics"].items()}
    for name in ("all_right", "omitted_right", "bleu_1", "rouge_l"):
        assert values[name] < 20, name
    assert values["all_right_oracle"] == 100.0
    assert values["fid_micro"] > 1e-4
    assert values["clip_score"] < values["clip_score_oracle"] - 20


def test_a_model_that_never_draws_keeps_half_of_inter_rel(tmp_path: Path, fid_folder: Path) -> None:
    def mute(index: int) -> Prediction:
        truth = oracle_prediction(index)
        silent = Reply(truth.reference.segments, tuple(None for _ in truth.reference.images))
        return Prediction(truth.id, truth.kind, "test", truth.request, truth.reference, silent, meta=truth.meta)

    with pytest.warns(UserWarning, match="FID needs two pictures"):
        trainer, _ = run(tmp_path, callbacks(fid_folder), mute)
    values = {name: item["value"] for name, item in read(trainer)["metrics"].items()}
    assert values["inter_rel"] == pytest.approx(values["inter_rel_oracle"] / 2)
    assert values["pictures_missing"] == 8
    assert values["clip_score"] is None
    assert values["bleu_2"] == pytest.approx(100.0)


def test_predictions_are_written_with_their_scores(tmp_path: Path, fid_folder: Path) -> None:
    trainer, _ = run(tmp_path, callbacks(fid_folder), oracle_prediction)
    folder = Path(str(trainer.log_dir))
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == list(range(12))
    assert rows[0]["scores"]["all_right"] == [True]
    assert rows[0]["scores"]["rouge_l"] == pytest.approx(100.0)
    assert "text_embeddings" not in rows[0]["scores"]
    assert (folder / rows[0]["generated"][0]["image"]).is_file()
    assert rows[2]["generated"] == [{"answer": rows[2]["reference"][0]["answer"], "caption": None, "image": None}]


class Resumable(Replies):
    """Takes known replies, and stops like a killed process when it is told to."""

    def __init__(self, resume: Path | None = None, stop_at: int | None = None) -> None:
        super().__init__(oracle_prediction)
        self.evaluation = SimpleNamespace(resume=resume and str(resume))
        self.known: dict[str, Any] = {}
        self.made: list[str] = []
        self.stop_at = stop_at

    def recall(self, known: dict[str, Any]) -> None:
        self.known = known

    def test_step(self, batch: torch.Tensor, _: int) -> list[Prediction]:
        if self.stop_at in batch.tolist():
            raise KeyboardInterrupt
        whole = [oracle_prediction(int(i)) for i in batch]
        self.made += [item.id for item in whole if item.id not in self.known]
        return [replace(item, generated=self.known.get(item.id, (item.generated,))[0]) for item in whole]


def test_an_interrupted_test_goes_on(tmp_path: Path, fid_folder: Path) -> None:
    def test(module: Resumable) -> Trainer:
        trainer = Trainer(
            accelerator="cpu", logger=TensorBoardLogger(tmp_path, ""), callbacks=callbacks(fid_folder),
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        loader: Any = DataLoader(list(range(12)), batch_size=4)
        trainer.test(module, loader, verbose=False)
        return trainer

    with pytest.raises(BaseException):  # noqa: B017  (Lightning turns it into one of several)
        test(Resumable(stop_at=8))
    (first,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert not (first / "results.json").exists() and len(list(first.glob("*.part.jsonl"))) == 1
    second = Resumable(resume=first)
    found = read(test(second))
    assert second.made == [f"s{k}#1" for k in range(8, 12)]
    whole = read(test(Resumable()))
    assert found["metrics"] == whole["metrics"]
    assert found["protocol"]["config_hash"] == whole["protocol"]["config_hash"]
    assert not list(tmp_path.glob("version_[12]/*.part.jsonl"))


def test_a_callback_may_be_strict(tmp_path: Path) -> None:
    class Broken(ColourEncoder):
        def encode_image(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            rows = super().encode_image(pictures)
            rows[0] = np.nan
            return rows

    trainer, _ = run(tmp_path, [CLIPScore(Broken()), InterRel(Broken()), Predictions("x")], oracle_prediction, batch=1)
    metrics = read(trainer)["metrics"]
    assert metrics["clip_not_finite"]["value"] == metrics["inter_rel_not_finite"]["value"] == 8
    assert metrics["clip_score"]["value"] is None and metrics["inter_rel_undefined"]["value"] == 4
    for metric in (CLIPScore(Broken(), strict=True), InterRel(Broken(), strict=True)):
        with pytest.raises(UserError, match="not finite"):
            run(tmp_path, [metric], oracle_prediction)


def test_missing_pictures_may_count_zero(tmp_path: Path) -> None:
    def half(index: int) -> Prediction:
        whole = oracle_prediction(index)
        silent = Reply(whole.reference.segments, tuple(None for _ in whole.reference.images))
        return replace(whole, generated=silent) if index % 2 else whole

    encoder = ColourEncoder()
    values = {}
    for missing in ("skip", "zero"):
        trainer, _ = run(tmp_path, [CLIPScore(encoder, missing=missing), Predictions("x")], half)  # type: ignore[arg-type]
        values[missing] = read(trainer)["metrics"]["clip_score"]
    assert (values["skip"]["n"], values["zero"]["n"]) == (4, 8)
    assert values["zero"]["value"] == pytest.approx(values["skip"]["value"] / 2)


def test_order_and_batch_size_do_not_matter(tmp_path: Path, fid_folder: Path) -> None:
    one = read(run(tmp_path, callbacks(fid_folder), oracle_prediction)[0])["metrics"]
    other = read(run(tmp_path, callbacks(fid_folder), oracle_prediction, samples=range(11, -1, -1), batch=5)[0])[
        "metrics"
    ]
    assert one.keys() == other.keys()
    for name, item in one.items():
        assert other[name]["value"] == pytest.approx(item["value"], rel=1e-6, abs=1e-6), name


def test_a_sample_given_twice_counts_once(tmp_path: Path, fid_folder: Path) -> None:
    trainer, _ = run(tmp_path, callbacks(fid_folder), oracle_prediction, samples=[0, 1, 2, 3, 0, 1])
    metrics = read(trainer)["metrics"]
    assert metrics["bleu_1"]["n"] == 4
    assert metrics["fid_micro_n_real"]["value"] == 3


def test_training_logs_curves_and_samples(tmp_path: Path, fid_folder: Path) -> None:
    parts = callbacks(fid_folder)
    trainer, module = run(tmp_path, parts, oracle_prediction, fit=True, precision="bf16-true")
    for name in ("clip_score", "clip_i", "fid_micro", "inter_rel", "bleu_1", "bleu_2", "rouge_l", "all_right"):
        assert f"val/{name}" in trainer.callback_metrics
    assert "val/clip_score_shuffled" not in trainer.callback_metrics
    assert trainer.callback_metrics["val/bleu_1"] == pytest.approx(100.0)
    events = EventAccumulator(str(trainer.log_dir)).Reload()
    assert "val/clip_score" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["val/context_generated_truth"]
    assert events.Tags()["tensors"] == ["val/replies/text_summary"]
    assert not (Path(str(trainer.log_dir)) / "results.json").exists()
    # Evaluators are no part of the model, and are freed.
    assert list(module.state_dict()) == ["weight"]
    encoder = parts[0].encoder  # type: ignore[attr-defined]
    assert encoder.released
    assert store_of(trainer).results["fid_micro"].value == pytest.approx(0.0, abs=1e-6)


def test_a_validation_that_generates_nothing_logs_nothing(tmp_path: Path, fid_folder: Path) -> None:
    trainer, _ = run(tmp_path, callbacks(fid_folder), None, fit=True)
    assert not any(name.startswith("val/") for name in trainer.callback_metrics)


def test_a_test_without_predictions_has_null_results(tmp_path: Path, fid_folder: Path) -> None:
    with pytest.warns(UserWarning, match="FID needs two pictures"):
        trainer, _ = run(tmp_path, callbacks(fid_folder), None)
    assert math.isnan(float(trainer.callback_metrics["test/clip_score"]))
    assert read(trainer)["metrics"]["clip_score"]["value"] is None


def test_other_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"list of m2chat\.schema\.Prediction"):
        run(tmp_path, [TextOverlap()], lambda index: "no prediction")  # type: ignore[arg-type, return-value]


def test_a_configuration_can_name_the_encoder() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    encoder = {"class_path": "m2chat.metrics.encoders.OpenClipEncoder", "init_args": {"model": "data/other"}}
    extractor = {"class_path": "m2chat.metrics.extractors.InceptionExtractor", "init_args": {"weights_path": "w.pth"}}
    for path, name, part in (
        ("m2chat.callbacks.clip_score.CLIPScore", "encoder", encoder),
        ("m2chat.callbacks.fid.FID", "extractor", extractor),
    ):
        parsed = parser.parse_object({"callback": {"class_path": path, "init_args": {name: part}}})
        callback = parser.instantiate(parsed).callback
        assert getattr(callback, name).name.startswith(("data/other", "w.pth"))
