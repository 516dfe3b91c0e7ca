"""The page of an evaluation, as a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2chat.evaluation.page import PAGE, write_page
from m2chat.evaluation.predictions import prediction_row, write_images, write_predictions
from m2chat.evaluation.results import write_results
from m2chat.evaluation.statistics import Estimate
from m2chat.schema import Prediction

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MARKED = (13, 200, 77)


def evaluation(folder: Path, make: Callable[..., Prediction], colour: tuple[int, int, int] = MARKED) -> Path:
    rows = []
    for index in range(20):
        drawn = np.full((32, 32, 3), colour, np.uint8) if index else None
        prediction = make(f"talk/{index}#1", drawn, caption=f"picture <{index}>", answer="look & see <script>")
        rows.append(
            prediction_row(prediction, write_images(folder, prediction)) | {"scores": {"inter_rel": float(index)}}
        )
    write_predictions(folder, rows)
    metrics = {"inter_rel": Estimate(9.5, 20, 7.0, 12.0), "fid_micro": Estimate(3.0, 20)}
    write_results(folder, metrics, {"dataset": "mmdialog", "stage": "m3ft", "versions": {"torch": "2"}})
    return folder


def test_it_holds_everything_and_asks_for_nothing(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> None:
    text = write_page(evaluation(tmp_path, make_prediction)).read_text(encoding="utf-8")
    assert "paper: 25.57" in text and "7.00 … 12.00" in text and text.count("<svg") == 2
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "look &amp; see &lt;script&gt;" in text and "<script" not in text
    parts = re.findall(r"<h2>(\w+) by InterRel</h2>", text)
    assert parts == ["Worst", "Median", "Best"]
    shown = re.findall(r"InterRel (\d+\.\d\d)", text)
    assert shown[:2] == ["0.00", "1.00"] and shown[6:8] == ["7.00", "8.00"] and shown[12:14] == ["19.00", "18.00"]
    assert "none" in text  # the sample that drew nothing


def test_models_side_by_side(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> None:
    folders = [evaluation(tmp_path / name, make_prediction) for name in ("ours", "sdxl")]
    text = write_page(folders[0], {"SDXL": folders[1]}, tmp_path / "fig4.html").read_text(encoding="utf-8")
    part = text.partition("<h2>Side by side</h2>")[2].partition("<h2>")[0]
    assert part.count("<figure>") == 3 * 12 and part.count("SDXL</figure>") == 12


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page with")
def test_a_browser_shows_it_and_talks_to_nobody(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> None:
    page = write_page(evaluation(tmp_path / "run", make_prediction))
    assert page.name == PAGE
    log, shot = tmp_path / "net.json", tmp_path / "page.png"
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-component-update", "--no-first-run",
        "--disable-background-networking", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        f"--log-net-log={log}", f"--screenshot={shot}", "--window-size=1100,3000", "--hide-scrollbars", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    seen = (np.abs(pixels.astype(int) - MARKED).max(-1) <= 2).sum()
    assert seen > 5 * 100 * 100  # several pictures of 112 x 112 stand there
    text = log.read_text(encoding="utf-8")
    log_json = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")
    asked = [event["params"]["url"] for event in log_json["events"] if "url" in event.get("params", {})]
    mine = [url for url in asked if url.startswith(("http", "ws")) and "google" not in url]
    assert mine == []
