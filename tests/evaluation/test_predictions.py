from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from m2chat.evaluation.predictions import prediction_row, write_images, write_predictions
from m2chat.schema import Prediction


def test_pictures_are_named_by_hash_only(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    prediction = make_prediction("../../etc/evil", drawn, array=np.ones(2))
    images = write_images(tmp_path, prediction)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert [name.partition("_")[2] for name in names] == ["context_0.png", "generated_0.png", "reference_0.png"]
    assert all(name[:16].isalnum() for name in names)  # a hash of the id, which may hold anything
    (generated,) = images["generated"]
    assert (np.asarray(Image.open(tmp_path / str(generated))) == drawn).all()
    others = [prediction_row(make_prediction(f"s{k}#1", None), images) for k in (10, 9)]
    path = write_predictions(tmp_path, [*others, prediction_row(prediction, images)])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert rows[0]["id"] == "../../etc/evil"
    assert rows[0]["generated"][0]["image"] == generated
    assert [row["id"] for row in rows[1:]] == ["s9#1", "s10#1"]
