"""Small inputs in the benchmarks' own forms, written by the tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def _png(path: Path, value: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 24, 3), value, np.uint8)).save(path)
    return path.name


def _lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def opening(root: Path) -> Path:
    rows = []
    for number, (asked, expected) in enumerate([(2, 2), (0, 1)], 1):
        sides = []
        for side, count in (("i", asked), ("o", expected)):
            items = [{"image": None, "text": f"\u2028 nothing to see {side}"}]
            for k in range(1, count + 1):
                name = f"./images/A Task/{number}-{side}-{k}.jpg"
                _png(root / name, 40 * k)
                items.append({"image": name, "text": f"a picture {k} <image> of {number}"})
            sides.append(items)
        sides[0][0]["text"] = f"<BEGIN>{sides[0][0]['text']}"
        rows.append(
            {
                "total_uid": f"010100{number}", "meta_task_id": "1", "meta_task_name": "a", "subtask_id": "1",
                "subtask_name": "A Task", "data_id": str(number),
                "conversations": [{"input": sides[0]}, {"output": sides[1]}],
            }
        )  # fmt: skip
    return _lines(root / "test_data.jsonl", rows)


def isg(root: Path) -> Path:
    def item(kind: str, content: str) -> dict[str, str]:
        if kind == "image":
            _png(root / content, 90)
        return {"type": kind, "content": content}

    rows = [
        {
            "id": f"000{k}", "Category": "HowTo",
            "Query": [item("text", "show two steps"), item("image", f"images/000{k}_q1.png")],
            "Golden": [item("text", "one"), item("image", f"images/000{k}_g1.png"), item("text", "two"),
                       item("image", f"images/000{k}_g2.png"), item("text", "the end")],
            "predict": {"structure": {}},
        }
        for k in range(3)
    ]  # fmt: skip
    return _lines(root / "ISG-Bench.jsonl", rows).parent


def geneval(root: Path) -> Path:
    rows = [
        {"tag": "counting", "include": [{"class": "ring", "count": n}], "prompt": f"a photo of {n} rings"}
        for n in (1, 2)
    ]
    return _lines(root / "prompts" / "evaluation_metadata.jsonl", rows).parents[1]


def magicbrush(root: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    def cell(name: str, value: int) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": name}

    # The second session's turns come in the wrong order.
    turns = [("7", 1, "7-input.png"), ("9", 2, "9-output1.png"), ("9", 1, "9-input.png"), ("9", 3, "9-output2.png")]
    rows = [
        {
            "img_id": name, "turn_index": turn, "source_img": cell(source, 20 * turn), "mask_img": cell("m.png", 0),
            "instruction": f"make it {turn}", "target_img": cell(f"{name}-output{turn}.png", 20 * turn + 20),
        }
        for name, turn, source in turns
    ]  # fmt: skip
    (root / "data").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), root / "data" / "dev-00000-of-00001-x.parquet")
    return root / "data"


def mmie(root: Path) -> Path:
    def record(id_: str, pictures: int) -> dict[str, Any]:
        question = [{"text": "go on", "image": None}]
        for k in range(pictures):
            question.append({"text": f"picture {k}", "image": f"images/{_png(root / f'images/{id_}{k}.png', k)}"})
        return {
            "id": id_, "question": question, "answer": "of another model", "model": "x",
            "gt_answer": [{"text": None, "image": None}],
        }  # fmt: skip

    (root / "data.json").parent.mkdir(parents=True, exist_ok=True)
    records = [record("SA-1", 0), record("PBL-2", 2), record("MSR-3", 3)]
    (root / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return root


def wise(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, first in (("a", 1), ("b", 401)):
        rows = [
            {"Prompt": f"prompt {k}", "Explanation": "x", "Category": "c", "Subcategory": "s", "prompt_id": k}
            for k in range(first, first + 2)
        ]
        (root / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return root


def vist(root: Path) -> Path:
    def story(number: int, album: str, first: int) -> list[list[dict[str, Any]]]:
        parts = [
            {
                "story_id": f"s{number}", "album_id": album, "photo_flickr_id": str(first + k),
                "worker_arranged_photo_order": k, "text": f"we did n't see part {k} .",
                "original_text": f"We didn't see part {k}.",
            }
            for k in range(5)
        ]  # fmt: skip
        return [[part] for part in reversed(parts)]

    for k in range(10, 20):
        _png(root / f"images/{k}.jpg", k)
    # Two stories of one sequence, and a second sequence of the same album.
    rows = [*story(1, "77", 10), *story(2, "77", 10), *story(3, "77", 15)]
    path = root / "test.story-in-sequence.json"
    path.write_text(json.dumps({"images": [], "albums": [], "annotations": rows}), encoding="utf-8")
    return path


def weave(root: Path) -> Path:
    images = [f"images/5_{k}.jpg" for k in (1, 2, 3)]
    for k, name in enumerate(images):
        _png(root / name, k)
    chats = [
        {"role": "user", "type": "text", "content": "Make Image #1 blue."},
        {"role": "assistant", "type": "image", "content": "Image #2"},
        {"role": "user", "type": "text", "content": "Is Image #2 darker than Image #1?"},
        {"role": "assistant", "type": "text", "content": "Yes."},
        {"role": "user", "type": "text", "content": "Now Image #1 in the colours of Image #2."},
        {"role": "assistant", "type": "image", "content": "Image #3"},
    ]
    record = {"idx": 5, "domain": "d", "images": images, "chats": chats}
    (root / "test.json").write_text(json.dumps([record]), encoding="utf-8")
    return root


def interleavedbench(root: Path) -> Path:
    names = [f"pics/{_png(root / f'pics/{k}.png', k)}" for k in range(3)]
    record = {
        "id": "task_0", "image": names, "task_name": "task",
        "conversations": [
            {"from": "human", "value": "first <image> and then?"},
            {"from": "gpt", "value": "this <image> and that <image>"},
        ],
    }  # fmt: skip
    (root / "interleaved_bench.json").write_text(json.dumps([record]), encoding="utf-8")
    return root


MADE: dict[str, Callable[[Path], Path]] = {
    "opening": opening, "isg": isg, "geneval": geneval, "magicbrush": magicbrush, "mmie": mmie, "wise": wise,
    "vist": vist, "weave": weave, "interleavedbench": interleavedbench,
}  # fmt: skip
"""Kind to a function that writes a source into a folder and returns what ``m2chat bench`` is given."""
FIXTURES = {
    "opening": "opening/OpenING-benchmark", "isg": "isg_bench/ISG_eval", "geneval": "geneval/prompts",
    "magicbrush": "magicbrush/data", "mmie": "mmie/eval_inputs", "wise": "wise/data_verified", "vist": "vist_arel",
    "weave": "weave/test", "interleavedbench": "interleavedbench/interleaved_bench.json",
}  # fmt: skip
"""Kind to the source among the sample files."""
PEERS = {
    "opening": ("opening/gen_outputs/Show-o_output", 1), "isg": ("isg_bench/ISG_eval/output/mymodel.jsonl", 3),
    "geneval": ("geneval/images", 6), "magicbrush": ("magicbrush/eval_layout", 3), "mmie": ("mmie/eval_inputs", 4),
    "wise": ("wise/generated_images", 5), "vist": ("vist_arel/prediction_test.json", 1),
    "weave": ("weave/result/mymodel", 1), "interleavedbench": ("interleavedbench", 2),
}  # fmt: skip
"""Kind to another system's outputs among the sample files, and the number of questions that they answer."""
