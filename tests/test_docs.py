"""The documents' own examples run, and the files that they name exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from m2chat.data.sources import outline
from m2chat.schema import KINDS

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, *sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("data/*.md")), *sorted(ROOT.glob("data/*/README.md"))]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_python_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(path), "exec"), {})


def test_files_of_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+/\w+\.py)`", text)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "src" / "m2chat" / name).is_file()] == []


def anchors(text: str) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ +(.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_pages_lead_somewhere(path: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if "://" not in link and not (
            target.exists() and (not anchor or anchor in anchors(target.read_text(encoding="utf-8")))
        ):
            lost.append(link)
    assert lost == []


def test_samples_of_the_formats_are_samples() -> None:
    text = (ROOT / "docs" / "data_formats.md").read_text(encoding="utf-8") + (ROOT / "data" / "README.md").read_text()
    kinds = [
        outline({"json": block.encode()})[0]
        for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)
        if json.loads(block)["schema"] == "m2c/1"
    ]
    assert set(kinds) == set(KINDS)
