"""`m2chat weights check`: whether weights are whole, and the published ones."""

from __future__ import annotations

import argparse

from m2chat.commands.arguments import existing
from m2chat.commands.weights.inspect import add_visual_heads


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "check", help="say which tensors are used, missing and unexpected, and verify SHA-256; exit code 1 for a fault"
    )
    parser.add_argument("source", type=existing(), help="a file or folder of weights")
    parser.add_argument(
        "--with", dest="language_model", type=existing(), metavar="LLAMA", help="the LLaMA of an adapter"
    )
    add_visual_heads(parser)
    parser.add_argument("--no-hash", action="store_true", help="leave out the SHA-256, which reads every byte")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the report.

    Returns:
        0, or 1 if a tensor is missing, unexpected or of another shape, an adapter was made for another language
        model, or a checksum differs from a stated one.

    Raises:
        UserError: If it cannot be read, or is nothing that is known here.
    """
    from m2chat.commands.data.printing import printable
    from m2chat.commands.weights.examine import examine
    from m2chat.commands.weights.inspect import named, show
    from m2chat.models.weights.known import verify_file

    findings = examine(options.source, options.language_model, options.visual_heads)
    show(options.source, findings)
    for part, report in findings.reports.items():
        counts = {"used": report.used, "missing": report.missing, "unexpected": report.unexpected,
                  "of another shape": report.misshapen, "of no use here": report.ignored}  # fmt: skip
        print(f"{part}: " + ", ".join(f"{len(names):,} {kind}" for kind, names in counts.items()))
        for kind in ("missing", "unexpected", "of another shape"):
            for name in counts[kind][:20]:
                print(f"  {kind}: {printable(name)}")
            if len(counts[kind]) > 20:
                print(f"  ... and {len(counts[kind]) - 20:,} more {kind}")
    if findings.foreign:
        print(f"adapter: not made for this language model: {findings.foreign}")
    verdicts = [] if options.no_hash else [verify_file(path) for path in findings.files]
    for verdict in verdicts:
        print(f"{verdict.sha256}  {named(verdict.file, options.source)}: {verdict.reason}")
    good = findings.whole and all(verdict.state != "bad" for verdict in verdicts)
    print("whole" if good else "NOT whole: see above")
    return 0 if good else 1
