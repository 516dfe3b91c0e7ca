"""Tables as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2chat.files import write_whole

Cells = list[tuple[str, ...]]
"""Rows of a table, its header first."""
_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "φ": r"$\phi$", "²": "$^2$", "³": "$^3$"}


@dataclass(frozen=True)
class Table:
    """A table with its title.

    Args:
        title: Heading in Markdown, caption in LaTeX.
        cells: Rows of cells, the header first; empty for a table that was not run.
        text: Line above the table in Markdown; empty for none.
    """

    title: str
    cells: Cells
    text: str = ""


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it also reads as plain text.

    Args:
        cells: Rows of equally many cells, the header first.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def markdown(tables: Iterable[Table], notes: Sequence[str]) -> str:
    """Tables below each other, behind some lines of notes."""
    lines = list(notes)
    for table in tables:
        lines += ["", f"### {table.title}", ""]
        lines += [table.text, ""] if table.text else []
        lines.append(aligned(table.cells))
    return "\n".join(lines) + "\n"


def latex(tables: Iterable[Table]) -> str:
    """Tables for the package ``booktabs``."""

    def tex(text: str) -> str:
        return "".join(_TEX.get(letter, letter) for letter in text)

    lines = ["% Written by `make tables`."]
    for table in tables:
        header, *rows = table.cells
        lines += [r"\begin{table}\centering", rf"\caption{{{tex(table.title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(tex, header)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(tex, row)) + r" \\" for row in rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def write_section(path: Path, text: str, name: str) -> None:
    """Writes a text between the marks of its section in a Markdown file, at the end if the file has no such section.

    Args:
        path: Markdown file, made if it does not exist; the rest of it stays.
        text: Content of the section.
        name: Name of the section, in its marks.
    """
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{start}\n{text}{end}\n"
    old = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n"
    before, begin, rest = old.partition(start)
    after = rest.partition(f"{end}\n")[2] if begin else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [before if begin else f"{old}\n", section, after])
