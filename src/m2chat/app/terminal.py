"""The chat in a terminal: streamed text, pictures as files and, where the terminal has 256 colours, as blocks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.style import Style
from rich.table import Table
from rich.text import Text

from m2chat.data.images import BadImage, load_image, save_png
from m2chat.errors import UserError
from m2chat.files import write_new
from m2chat.pipeline import Drawn, Event, Finished, M2ChatPipeline, Notice, Progress, Session, Words
from m2chat.schema import Picture
from m2chat.world import Example

COMMANDS = {
    "!help": "this list",
    "!image PATH": "add a picture to the next message",
    "!draw auto|force|never": "whether replies have pictures",
    "!seed N|random": "seed of the next replies",
    "!again [TEXT]": "regenerate the last reply; with TEXT in place of the last message",
    "!more": "generate another reply, as the next part of a story",
    "!undo": "remove the last message and its reply",
    "!save FOLDER": "save the session",
    "!load FOLDER": "load a saved session",
    "!exit": "end the program (as Ctrl-D; Ctrl-C stops a reply)",
}


class TerminalChat:
    """A conversation in a terminal.

    Args:
        pipe: Pipeline.
        console: Console for the output.
        folder: Folder for generated pictures.
        examples: Messages to try.
    """

    def __init__(self, pipe: M2ChatPipeline, console: Console, folder: Path, examples: Sequence[Example] = ()) -> None:
        self.console, self.folder = console, folder
        self.examples = [example for example in examples if isinstance(example, str)]
        self.session = Session(pipe, preview_every=0)
        self.shown: list[Picture] = []

    def run(self, read: Callable[[], str]) -> None:
        """Reads lines until the user ends the program.

        Args:
            read: Function that returns the next line, and raises `EOFError` at the end.
        """
        self.console.print("Say something; [bold]!help[/bold] lists the commands.")
        for example in self.examples:
            self.console.print(f"[dim]for example: {escape(example)}[/dim]")
        while True:
            try:
                line = read().strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line == "!exit":
                return
            try:
                if line.startswith("!"):
                    self.command(line)
                elif line or self.shown:
                    shown, self.shown = self.shown, []
                    self.listen(self.session.stream(line, shown))
            except UserError as error:
                self.console.print(f"[red]{escape(str(error))}[/red]")

    def command(self, line: str) -> None:
        """Runs a command, a line that begins with ``!``.

        Raises:
            UserError: If there is no such command, or its argument is missing or wrong.
        """
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "!help":
            table = Table.grid(padding=(0, 2))
            for command, meaning in COMMANDS.items():
                table.add_row(f"[bold]{escape(command)}[/bold]", meaning)
            self.console.print(table)
        elif name == "!image":
            self.shown.append(self._open(_path(rest)))
            self._picture(self.shown[-1])
        elif name == "!draw":
            if rest not in ("auto", "force", "never"):
                raise UserError(f"!draw {rest}: choose auto, force or never")
            self.session.configure(image=rest)
        elif name == "!seed":
            if rest != "random" and not rest.isdecimal():
                raise UserError(f"!seed {rest}: give a whole number from 0, or random")
            self.session.configure(seed=None if rest == "random" else int(rest))
        elif name == "!again":
            self.listen(self.session.regenerate(rest or None))
        elif name == "!more":
            self.listen(self.session.go_on())
        elif name == "!undo":
            self.console.print(f"[dim]removed: {escape(self.session.undo())}[/dim]")
        elif name == "!save":
            self.session.save(_path(rest))
            self.console.print(f"[dim]saved in {escape(rest)}[/dim]")
        elif name == "!load":
            self.session = Session.load(self.session.pipe, _path(rest))
            self.shown = []
            self.console.print(f"[dim]{len(self.session.turns)} turns, {len(self.session.images)} pictures[/dim]")
        else:
            raise UserError(f"there is no command {name}: choose one of {', '.join(COMMANDS)}")

    def listen(self, events: Iterator[Event]) -> None:
        """Prints a reply while it is generated; Ctrl-C stops it, and what there is is kept."""
        before = len(self.session.images)
        status = self.console.status("…")
        try:
            for event in events:
                self._event(event, status)
        except KeyboardInterrupt:
            # Raised within the computation, or while printing: in both cases closing keeps the reply so far.
            events.close()  # type: ignore[attr-defined]
            self.console.print("\n[dim](stopped)[/dim]")
        finally:
            status.stop()
        for number in range(before + 1, len(self.session.images) + 1):
            image = self.session.images[number - 1]
            if not image.caption_by:  # generated: only captions of shown pictures have a source
                path = write_new(self.folder, f"picture-{number:04d}", ".png", save_png(image.pixels))
                self.console.print(f"[dim]picture {number}: {escape(image.caption)} ({escape(str(path))})[/dim]")

    def _event(self, event: Event, status: Status) -> None:
        if isinstance(event, Words) and event.of == "answer" and event.text:
            self.console.print(event.text, end="", markup=False, highlight=False, soft_wrap=True)
        elif isinstance(event, Progress) and self.console.is_terminal:
            if event.step == 1:
                self.console.print()
            status.start()
            status.update(f"drawing, step {event.step} of {event.steps}")
        elif isinstance(event, Drawn):
            status.stop()
            self.console.print()
            self._picture(event.picture)
        elif isinstance(event, Notice):
            self.console.print(f"[yellow]{escape(event.text)}[/yellow]")
        elif isinstance(event, Finished):
            self.console.print("[dim](stopped)[/dim]" if event.stopped else "")

    def _picture(self, picture: Picture) -> None:
        if self.console.color_system in ("truecolor", "256"):
            self.console.print(blocks(picture, min(64, self.console.width)), end="")

    @staticmethod
    def _open(path: Path) -> Picture:
        try:
            return load_image(path.read_bytes())
        except (OSError, BadImage) as error:
            raise UserError(f"{path} cannot be shown: {error}") from error


def _path(rest: str) -> Path:
    """The path after a command, with quotes and ``~`` as in a shell."""
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UserError(f"{rest}: {error}") from error
    if len(words) != 1:
        raise UserError("name one path; put quotes around one with blanks")
    return Path(words[0]).expanduser()


def blocks(picture: Picture, columns: int = 32) -> Text:
    """A picture as coloured half blocks, two pixels per character, one above the other.

    Args:
        picture: RGB, (H, W, 3), 0-255.
        columns: Maximum width in characters.
    """
    height, width = picture.shape[:2]
    wide = min(columns, width)
    high = max(2, round(height * wide / width) // 2 * 2)
    small = np.asarray(Image.fromarray(picture).resize((wide, high), Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    return text
