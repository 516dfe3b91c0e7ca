"""`m2chat data subset`: a reproducible choice of some samples of a data set."""

from __future__ import annotations

import argparse

from m2chat.commands.arguments import in_range, new_folder


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "subset",
        help="choose some samples of some shards, always the same ones",
        description="Chooses by a hash of each sample's id: the same samples whatever the number and order of the "
        "shards, and a larger choice contains every smaller one of the same seed.",
    )
    parser.add_argument("source", metavar="SRC", help="a .tar shard, a folder of them, or a pattern")
    parser.add_argument("target", metavar="DST", type=new_folder, help="folder for the new shards")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--count", type=in_range("count"), metavar="N", help="number of samples")
    size.add_argument("--share", type=in_range("part"), metavar="F", help="share of the samples, above 0 and up to 1")
    parser.add_argument(
        "--seed", type=in_range("seed"), default=0, help="another seed chooses others (default: %(default)s)"
    )
    parser.add_argument("--without", metavar="SHARDS", help="leave out every sample that also occurs in these shards")
    parser.add_argument(
        "--per-shard", type=in_range("count"), default=1000, metavar="N", help="samples per shard (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Chooses and writes.

    Raises:
        UserError: If a setting or a folder does not fit.
    """
    from m2chat.data.subset import Choice, prints_in, subset
    from m2chat.errors import UserError

    if options.count is None and options.share is None and options.without is None:
        raise UserError("nothing to choose by: give --count N, --share F or --without SHARDS")
    share = 1.0 if options.share is None else options.share
    known = prints_in(options.without, "--without") if options.without else frozenset()
    choice = Choice(options.count, share, options.seed, known)
    shards = subset(options.source, options.target, choice, options.per_shard)
    print(f"{options.target}: {choice.kinds.total()} samples in {shards} shards, listed in index.json")
    for title, counts in (("chosen", choice.kinds), ("left out", choice.left_out)):
        for name, count in counts.most_common():
            print(f"  {title}: {count:8} x {name}")
    if options.count is not None and choice.kinds.total() < options.count:
        print(f"  SRC holds no {options.count} samples that can be chosen")
