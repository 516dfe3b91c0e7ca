"""The chat in a terminal: words as they come, pictures saved and shown where the terminal has colours."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from m2chat.app.blocks import blocks
from m2chat.data.images import BadImage, load_image, save_png
from m2chat.errors import UserError
from m2chat.files import take_file
from m2chat.pipeline import Drawn, Event, Finished, M2ChatPipeline, Notice, Progress, Session, Words
from m2chat.schema import Picture

COMMANDS = {
    "!help": "this list",
    "!image PATH": "show a picture with the next line",
    "!draw auto|force|never": "whether replies hold pictures",
    "!seed N|random": "of the replies to come",
    "!again [TEXT]": "another reply to the last line, or to other words in its place",
    "!more": "let it go on, as with the next part of a story",
    "!undo": "forget the last line and its reply",
    "!save FOLDER": "write the session",
    "!load FOLDER": "go on with a session that was saved",
    "!exit": "leave (Ctrl-D does it too; Ctrl-C stops a reply)",
}


class TerminalChat:
    """Talks with one user.

    Args:
        pipe: Replies.
        console: Where it is written.
        folder: For pictures.
    """

    def __init__(self, pipe: M2ChatPipeline, console: Console, folder: Path) -> None:
        self.console, self.folder = console, folder
        self.session = Session(pipe, preview_every=0)
        self.shown: list[Picture] = []

    def run(self, read: Callable[[], str]) -> None:
        """Reads lines until the user leaves.

        Args:
            read: Gives the next line; raises `EOFError` at the end.
        """
        self.console.print("Say something; [bold]!help[/bold] lists the commands.")
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
        """Does what a line that begins with ``!`` says.

        Raises:
            UserError: If there is no such command, or it lacks something.
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
            self.console.print(f"[dim]forgotten: {escape(self.session.undo())}[/dim]")
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
        """Writes a reply as it comes; Ctrl-C stops it, and what there is stays."""
        before = len(self.session.images)
        status = self.console.status("…")
        try:
            for event in events:
                self._event(event, status)
        except KeyboardInterrupt:
            # It struck in the middle of the computation or while we wrote: closing keeps what there is in both cases.
            events.close()  # type: ignore[attr-defined]
            self.console.print("\n[dim](stopped)[/dim]")
        finally:
            status.stop()
        for number in range(before + 1, len(self.session.images) + 1):
            image = self.session.images[number - 1]
            if not image.caption_by:  # drawn, not shown
                path = take_file(self.folder, f"picture-{number:04d}", ".png")
                path.write_bytes(save_png(image.pixels))
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
    """The one path behind a command; quotes and ``~`` mean what they mean in a shell."""
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UserError(f"{rest}: {error}") from error
    if len(words) != 1:
        raise UserError("name one path; put quotes around one with blanks")
    return Path(words[0]).expanduser()
