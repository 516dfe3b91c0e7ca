"""`m2chat data inspect`: counts the samples of shards, and shows some as the model receives them."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from m2chat.commands.arguments import in_range, new_file
from m2chat.files import write_whole

if TYPE_CHECKING:
    from m2chat.data.preview import Contents, Preview, Span
    from m2chat.schema import Sample

_COLOURS: dict[Span, int] = {"answer": 32, "caption": 35, "image": 34, "other": 36, "mark": 33, "cut": 31}
"""ANSI colours; the prompt has none."""
_STRUCK = ";9"


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    from m2chat.commands.data.layout import add_layout

    parser = actions.add_parser(
        "inspect",
        help="count the samples of some shards, and show some as the model receives them",
        description="Reads every sample as training would, counts, and shows some with the very sequence of training: "
        "which words are answer and caption, where the picture's slots stand, what the loss scores, what was cut.",
    )
    parser.add_argument("path", help="a .tar shard, a folder of them, or a pattern")
    parser.add_argument(
        "-n", type=in_range("number"), default=3, metavar="N", help="samples to show (default: %(default)s)"
    )
    parser.add_argument("--html", type=new_file, metavar="FILE", help="show them on a page with their pictures instead")
    parser.add_argument("--quick", action="store_true", help="read only what is shown, and count nothing")
    add_layout(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the counts and the samples.

    Raises:
        UserError: If there are no shards, or the tokenizer or the configuration cannot be read.
    """
    from m2chat.data.preview import contents_of, previews_of, spread_samples

    if not options.quick:
        _print_counts(contents_of(options.path))
    if options.n < 1:
        return
    from m2chat.commands.data.layout import layout_of

    layout = layout_of(options)
    samples = spread_samples(options.path, options.n)
    replies = [reply for sample in samples for reply in previews_of(sample, layout)]
    if options.html:
        from m2chat.data.preview_page import preview_page

        write_whole(options.html, [preview_page(replies, options.path, layout.max_tokens)])
        print(f"{len(replies)} replies are shown in {options.html}")
        return
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for reply in replies:
        print("\n" + "\n".join(lines_of(reply, layout.max_tokens, colour=colour)))
    if replies:
        print("\n* the language loss scores it")


def _print_counts(contents: Contents) -> None:
    from m2chat.commands.data.stats import NOT_UTF8

    good, bad = contents.kinds.total(), contents.bad.total()
    print(f"{contents.shards} shards, {good + bad} samples: {good} good with {contents.replies} replies, {bad} bad")
    for title, counts in (("good", contents.kinds), ("bad", contents.bad), ("files left out", contents.skipped)):
        for name, count in counts.most_common():
            print(f"  {title}: {count:8} x {name}")
    if contents.not_utf8:
        print("  " + NOT_UTF8.format(count=contents.not_utf8))


def lines_of(reply: Preview, max_tokens: int, *, colour: bool) -> list[str]:
    """A reply as lines for the terminal.

    Args:
        reply: Preview of the reply.
        max_tokens: Longest sequence.
        colour: Whether the terminal has colours.
    """
    from m2chat.commands.data.printing import printable

    sample = reply.sample
    pictures = [
        f"{name} {_picture(sample, index)}"
        for name, index in (("context", reply.view.context), ("target", reply.target))
        if index is not None
    ]
    facts = [f"{reply.tokens} of {max_tokens} tokens, {reply.cut} cut", *pictures]
    lines = [printable(f"{sample.id} turn {reply.turn}, {sample.kind}: {'; '.join(facts)}").replace("\n", " ")]
    for piece in reply.pieces:
        code = f"{_COLOURS[piece.span]}{_STRUCK if piece.span == 'cut' else ''}" if piece.span in _COLOURS else ""
        for number, line in enumerate(printable(piece.text).split("\n")):
            label = "" if number else f"{piece.span}{' *' if piece.scored else ''}"
            lines.append(f"  {label:10} " + (f"\x1b[{code}m{line}\x1b[0m" if colour and code else line))
    return lines


def _picture(sample: Sample, index: int) -> str:
    height, width = sample.images[index].pixels.shape[:2]
    return f"picture {index + 1}, {width} x {height}"
