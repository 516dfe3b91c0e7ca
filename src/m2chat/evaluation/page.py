"""``report.html``: an evaluation as one page that holds everything it shows and asks nobody for anything."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from m2chat.evaluation.charts import Bar, bars, histogram
from m2chat.evaluation.paper import paper_values
from m2chat.evaluation.report import NOTE
from m2chat.evaluation.results import RESULTS, read_predictions, read_results
from m2chat.evaluation.scores import RANKED, sample_scores
from m2chat.evaluation.statistics import Estimate

PAGE = "report.html"
SHOWN = 6
"""Samples of each part of the gallery."""
_FACTS = (
    "stage", "weights", "weights_digest", "dataset", "given", "context", "layout", "conditioner", "steps", "guidance",
    "seeds", "samples", "clip_score_encoder", "fid_extractor", "inter_rel", "config_hash", "ranks", "precision",
)  # fmt: skip
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1080px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em} h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-size:13px} td,th{padding:3px 10px;text-align:left;border-bottom:1px solid #eee}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.plots{display:flex;flex-wrap:wrap;gap:8px}
.card{display:grid;grid-template-columns:1fr auto;gap:12px;border:1px solid #e4e4e4;border-radius:6px;padding:10px;
margin:8px 0}
figure{display:inline-block;margin:0 0 0 8px;text-align:center;font-size:12px;color:#666}
img{width:112px;height:112px;object-fit:contain;image-rendering:pixelated;background:#eee;display:block}
.none{width:112px;height:112px;background:#eee;display:flex;align-items:center;justify-content:center}
.who{color:#888;font-size:12px} p{margin:2px 0}
"""


def write_page(folder: Path, beside: Mapping[str, Path] | None = None, out: Path | None = None) -> Path:
    """Writes the page of an evaluation.

    Args:
        folder: Holds ``results.json``, ``predictions.jsonl`` and the pictures.
        beside: Further evaluations of the same samples by name, whose pictures stand beside this one's (Fig. 4).
        out: File to write; ``report.html`` in the folder by default.

    Returns:
        The file.

    Raises:
        UserError: If a folder holds no evaluation.
    """
    metrics, protocol = read_results(folder / RESULTS)
    rows = read_predictions(folder)
    dataset = str(protocol.get("dataset") or folder.name)
    parts = [
        f"<h1>{escape(dataset)}: {escape(str(protocol.get('stage', '')))}</h1>",
        _facts(protocol),
        "<h2>Metrics</h2>",
        _table({name: item for name, item in metrics.items() if "/" not in name}, dataset),
        f"<p class=who>{escape(NOTE.replace('`', ''))} Intervals: 95 %, bootstrap over samples; FID has none.</p>",
        "<h2>Plots</h2>",
        _plots(metrics, rows),
    ]
    if beside:
        parts += ["<h2>Side by side</h2>", _side_by_side({"this": folder, **beside}, SHOWN * 2)]
    parts.append(_gallery(folder, rows))
    # The policy makes a browser itself refuse whatever is not in the file.
    head = (
        '<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(dataset)}</title><style>{_STYLE}</style>"
    )
    path = out or folder / PAGE
    path.write_text(f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>", "utf-8")
    return path


def _facts(protocol: Mapping[str, Any]) -> str:
    rows = [(name, protocol[name]) for name in _FACTS if protocol.get(name) is not None]
    rows += [("tasks", ", ".join(f"{kind}: {how}" for kind, how in (protocol.get("tasks") or {}).items()))]
    rows += [("versions", ", ".join(f"{name} {v}" for name, v in (protocol.get("versions") or {}).items() if v))]
    cells = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(value))}</td></tr>" for k, value in rows if value)
    return f"<details><summary>How it was measured</summary><table>{cells}</table></details>"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _table(metrics: Mapping[str, Estimate], dataset: str) -> str:
    paper = paper_values(dataset)
    lines = ["<table><tr><th>metric<th>value<th>95 % interval<th>n<th>paper (7B, real data)</tr>"]
    for name, item in metrics.items():
        interval = "" if math.isnan(item.low) else f"{_number(item.low)} … {_number(item.high)}"
        theirs = paper.get("fid" if name == "fid_micro" else name)
        cells = (_number(item.value), interval, "" if item.n is None else item.n)
        lines.append(
            f"<tr><td>{escape(name)}</td>"
            + "".join(f"<td class=n>{cell}</td>" for cell in cells)
            + f"<td>{'' if theirs is None else f'paper: {theirs:.2f}'}</td></tr>"
        )
    return "".join(lines) + "</table>"


def _plots(metrics: Mapping[str, Estimate], rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [
        Bar(name, item.value, item.low, item.high)
        for name, item in metrics.items()
        if "/" not in name and math.isfinite(item.low)
    ]
    scores = [sample_scores(row) for row in rows]
    names = [name for name in RANKED if any(name in own for own in scores)]
    spreads = [histogram(f"{name} of single samples", [own[name] for own in scores if name in own]) for name in names]
    return f"<div class=plots>{bars('with intervals', shown)}{''.join(spreads)}</div>"


def picture(folder: Path, name: str | None, label: str) -> str:
    """A picture of a file within the page, or a grey square that says that there is none."""
    if not name:
        return f"<figure><div class=none>none</div>{escape(label)}</figure>"
    data = base64.b64encode((folder / name).read_bytes()).decode()
    return f'<figure><img alt="{escape(label)}" src="data:image/png;base64,{data}">{escape(label)}</figure>'


def _words(segments: Sequence[Mapping[str, Any]]) -> str:
    said = []
    for segment in segments:
        caption = f" <span class=who>[picture: {escape(segment['caption'])}]</span>" if segment["caption"] else ""
        said.append(escape(segment["answer"] or "") + caption)
    return " ".join(said) or "<span class=who>(nothing)</span>"


def _card(folder: Path, row: Mapping[str, Any], score: str) -> str:
    pictures = [picture(folder, row["context"], "context")] if row["context"] else []
    for role, label in (("reference", "reference"), ("generated", "reply")):
        pictures += [picture(folder, s["image"], label) for s in row[role] if s["image"] or s["caption"] is not None]
    text = (
        f"<p class=who>{escape(row['id'])} · {escape(row['kind'])} · {escape(score)}</p>"
        f"<p><span class=who>prompt</span> {escape(row['request'])}</p>"
        f"<p><span class=who>reference</span> {_words(row['reference'])}</p>"
        f"<p><span class=who>reply</span> {_words(row['generated'])}</p>"
    )
    return f"<div class=card><div>{text}</div><div>{''.join(pictures)}</div></div>"


def _gallery(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    scored = [(sample_scores(row), row) for row in rows]
    name = next((name for name in RANKED if any(name in own for own, _ in scored)), None)
    if name is None:
        return "<h2>Samples</h2>" + "".join(_card(folder, row, "") for row in rows[:SHOWN])
    ranked = sorted(((own[name], row["id"], row) for own, row in scored if name in own), key=lambda item: item[:2])
    middle = max(0, len(ranked) // 2 - SHOWN // 2)
    sets = {"worst": ranked[:SHOWN], "median": ranked[middle : middle + SHOWN], "best": ranked[::-1][:SHOWN]}
    return "".join(
        f"<h2>{label.capitalize()} by {name}</h2>"
        + "".join(_card(folder, row, f"{name} {value:.2f}") for value, _, row in chosen)
        for label, chosen in sets.items()
    )


def _side_by_side(folders: Mapping[str, Path], count: int) -> str:
    """The same prompts and seeds, a column an evaluation (Fig. 4); samples that not all of them have are left out."""
    found = {name: {row["id"]: row for row in read_predictions(folder)} for name, folder in folders.items()}
    first = next(iter(found))
    shared = [id_ for id_ in found[first] if all(id_ in rows for rows in found.values())]
    due = [id_ for id_ in shared if any(segment["caption"] for segment in found[first][id_]["reference"])][:count]
    lines = []
    for id_ in due:
        row = found[first][id_]
        truth = next(segment for segment in row["reference"] if segment["caption"])
        pictures = [picture(folders[first], truth["image"], "reference")]
        for name, rows in found.items():
            drawn = next((segment["image"] for segment in rows[id_]["generated"] if segment["image"]), None)
            pictures.append(picture(folders[name], drawn, name))
        text = f"<p class=who>{escape(id_)}</p><p>{escape(truth['caption'])}</p>"
        lines.append(f"<div class=card><div>{text}</div><div>{''.join(pictures)}</div></div>")
    return "".join(lines) or "<p>No sample is in all of these evaluations.</p>"
