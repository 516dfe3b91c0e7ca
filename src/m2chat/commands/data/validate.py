"""`m2chat data validate`: lists every fault of some shards, with its place."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from m2chat.commands.arguments import new_file
from m2chat.files import write_whole

_SHOWN = 10
"""Number of faults per reason that are printed; `--json` writes all."""


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "validate",
        help="list every fault of some shards, with its place",
        description="Reads everything, pictures too, and changes nothing. Exit code 1 if there is a fault.",
    )
    parser.add_argument("path", help="a .tar shard, a folder of them, or a pattern")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write all faults there, for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the faults.

    Returns:
        Exit code: 1 if there are any, else 0.
    """
    from m2chat.commands.data.printing import printable
    from m2chat.data.faults import check

    report = check(options.path)
    print(f"{report.shards} shards, {report.samples} samples, faults: {len(report.faults)}")
    for reason, count in report.counts.most_common():
        print(f"{reason}: {count}")
        for fault in [fault for fault in report.faults if fault.reason == reason][:_SHOWN]:
            place = ": ".join(part for part in (fault.shard, fault.key, fault.member) if part)
            print(printable(f"  {place}{f' ({fault.detail})' if fault.detail else ''}"))
        if count > _SHOWN:
            print(f"  ... and {count - _SHOWN} more" + ("" if options.json else "; --json FILE has them all"))
    if options.json:
        record = {
            "shards": report.shards,
            "samples": report.samples,
            "counts": dict(report.counts.most_common()),
            "faults": [asdict(fault) for fault in report.faults],
        }
        write_whole(options.json, [json.dumps(record, indent=1), "\n"])
    return int(bool(report.faults))
