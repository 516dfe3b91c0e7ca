"""Every example runs without an argument that it needs, and writes pictures; the guide names it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from m2chat.data.images import load_image

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WRITES = {
    "dialogue": {"dialogue.png"},
    "edit": {"edit.png", "edit-1.png", "similar.png"},
    "lens": {"lens.png", "lens-inverse.png"},
    "session": {"session-1.png", "session-2.png", "session-3.png"},
    "story": {"story.png", "story-3.png", "story-beside-decoder.png"},
    "text_to_image": {"text-to-image.png", "text-to-image-2.png"},
    "wish": {"wish.png", "wish-3.png"},
}


def test_there_is_one_for_each_task_and_the_guide_names_it() -> None:
    assert {path.stem for path in EXAMPLES} == set(WRITES)
    guide = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES if f"examples/{path.name}" not in guide] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # from anywhere
    monkeypatch.setattr("sys.argv", [str(path), "--steps", "2"])
    runpy.run_path(str(path), run_name="__main__")
    written = {file.name: load_image(file.read_bytes()) for file in (tmp_path / "m2chat_pictures").glob("*.png")}
    assert written.keys() >= WRITES[path.stem]
    assert all(pixels.std() > 1 for pixels in written.values()), "they show something"
