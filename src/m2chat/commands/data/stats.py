"""`m2chat data stats`: the statistics of a data set."""

from __future__ import annotations

import argparse
import json
from typing import Any

from m2chat.commands.arguments import new_file
from m2chat.files import write_whole

NOT_UTF8 = "{count} captions have bytes that are not UTF-8, read as U+FFFD; `m2chat data validate` lists them"
"""Notice of captions that are not read as they were written."""


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    from m2chat.commands.data.layout import add_layout

    parser = actions.add_parser(
        "stats",
        help="the numbers of some shards: kinds, turns, lengths, sizes, duplicates",
        description="Counts without decoding pictures; `m2chat data validate` lists those that cannot be decoded.",
    )
    parser.add_argument("path", help="a .tar shard, a folder of them, or a pattern")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the numbers there too, for programs")
    add_layout(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the table.

    Raises:
        UserError: If there are no shards, or the tokenizer or the configuration cannot be read.
    """
    from m2chat.commands.data.layout import layout_of
    from m2chat.data.stats import gather

    record = gather(options.path, layout_of(options)).record()
    print("\n".join(table(record)))
    if options.json:
        write_whole(options.json, [json.dumps(record, indent=1), "\n"])


def table(record: dict[str, Any]) -> list[str]:
    """The lines of the table.

    Args:
        record: Statistics, see `Stats.record`.
    """
    kinds = ", ".join(f"{count} {kind}" for kind, count in record["kinds"].items())
    lines = [f"{'samples':22}{record['samples']} in {record['shards']} shards: {kinds or 'none that is good'}"]
    lines += [f"{'bad':22}{count} x {reason}" for reason, count in record["bad"].items()]
    if count := record.get("captions_not_utf8"):
        lines.append(f"{'not UTF-8':22}{NOT_UTF8.format(count=count)}")
    replies = record["replies"]
    shares = (f"{count / replies:.1%} with {number}" for number, count in record["pictures_per_reply"].items())
    lines += [f"{'replies':22}{replies}; pictures: {', '.join(shares)}", ""]
    lines.append(f"{'':22}{'median':>8}{'p95':>8}{'max':>8}")
    rows = [("turns", record["turns"])]
    rows += [(f"tokens: {name}", summary) for name, summary in record["tokens"].items()]
    rows += [("shorter side", record["shorter_side"]), ("  before resizing", record["original_shorter_side"])]
    lines += [f"{name:22}{row['median']:>8}{row['p95']:>8}{row['max']:>8}" for name, row in rows if row["count"]]
    sequence = record["tokens"]["sequence"]
    users = record["user_texts"]
    texts = [f"{'texts of users':22}{users['count']}, {users['different']} of them different"] if users["count"] else []
    sizes = (f"{width} x {height} ({count})" for width, height, count in record["sizes"])
    return [
        *lines,
        "",
        f"{'too long':22}{sequence['share_over']:.1%} of the sequences have more than {sequence['max_tokens']} tokens",
        f"{'pictures':22}{record['pictures']}; most frequent sizes: {', '.join(sizes)}",
        f"{'without caption':22}{record['share_without_caption']:.1%} of the pictures",
        f"{'repeated':22}{record['share_repeated_captions']:.1%} of the captions, "
        f"{record['share_repeated_images']:.1%} of the pictures",
        *texts,
    ]
