"""`m2chat eval`: tables, comparisons and pages of evaluations, the rows of the tables, and other systems' outputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from m2chat.commands.arguments import CONFIG, existing, in_range, new_file, new_folder
from m2chat.errors import UserError
from m2chat.files import write_whole

RUN = "name the folder of a `lightning test` run"

if TYPE_CHECKING:
    from m2chat.commands.evaluation.swap import MeaningVerdict


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands."""
    parser = commands.add_parser("eval", help="tables, comparisons and pages of evaluations; other systems' outputs")
    ways = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    table = ways.add_parser("table", help="the paper's tables and the ablations, or every metric, from kept results")
    _add_row_options(table)
    table.add_argument("--group", choices=("paper", "seeds"), default="paper", help="tables to write: the paper's and "
                       "the ablations, or every metric over the seeds (default: %(default)s)")  # fmt: skip
    table.add_argument(
        "--seeds", type=in_range("number"), nargs="+", help="seeds of `--group seeds`; each row's defaults if not given"
    )
    table.add_argument("--logs", type=Path, help="folder of runs whose newest is added to the "
                       "paper's tables (default: none, so that a local run changes no table); of `--group seeds` the "
                       "folder whose pictures are compared (default: lightning_logs)")  # fmt: skip
    table.add_argument("--format", choices=("markdown", "latex"), default="markdown")
    table.add_argument(
        "--into", type=new_file, help="file to write instead of printing; the rest of a Markdown file stays"
    )
    table.add_argument("--plot", type=new_file, help="SVG file to write")
    table.set_defaults(run=run_table)

    compare = ways.add_parser("compare", help="are two evaluations of the same samples different? paired bootstrap")
    compare.add_argument("a", type=existing("folder", RUN), help="folder of an evaluation")
    compare.add_argument("b", type=existing("folder", RUN), help="folder of another, on the same samples")
    compare.add_argument("--pictures", action="store_true", help="judge the pictures of both again, side by side")
    compare.add_argument("--world", help="generated world whose judge reads the pictures; as in A's results.json, or "
                         "shapes, if not given")  # fmt: skip
    compare.set_defaults(run=run_compare)

    folder = ways.add_parser("folder", help="score pictures and replies that another system has left on disk")
    folder.add_argument("jsonl", type=existing("file"), help="a line per sample, described in docs/evaluation.md")
    folder.add_argument("out", type=new_folder, help="folder for results.json, predictions.jsonl and report.html")
    folder.add_argument("--config", type=existing("file", CONFIG), required=True,
                        help="configuration with the metrics, such as "
                        "configs/eval_coco.yaml")  # fmt: skip
    folder.add_argument("--reference", "--truth", type=existing("folder", RUN), metavar="RUN",
                        help="evaluation whose samples, by id, are "
                        "the reference")  # fmt: skip
    folder.add_argument("--name", default="", help="name of the system")
    folder.set_defaults(run=run_folder)

    swap = ways.add_parser("swap", help="evaluate again with other image decoders: is the meaning kept? paired table")
    swap.add_argument("run_folder", metavar="RUN", type=existing("folder", RUN), help="folder of an evaluation")
    swap.add_argument("--decoder", action="append", required=True, metavar="PATH", help="what to draw with: folder, "
                      "single file, UNet, LoRA, or settings such as configs/decoder/lcm.yaml; may be given several "
                      "times")  # fmt: skip
    swap.add_argument("--out", type=new_folder, help="folder of the new evaluations; swap/ in RUN by default")
    swap.add_argument("--tolerance", type=in_range("points"), default=5.0,
                      help="points by which the share of right pictures may "
                      "differ for the meaning to be kept (default: %(default)s)")  # fmt: skip
    swap.add_argument("--lightning", default="lightning", help="command that evaluates")
    swap.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="arguments for every run; comes last")
    swap.set_defaults(run=run_swap)

    page = ways.add_parser("page", help="write report.html again, other evaluations' pictures beside (Fig. 4)")
    page.add_argument("run_folder", metavar="RUN", type=existing("folder", RUN), help="folder of an evaluation")
    page.add_argument("--beside", action="append", default=[], metavar="NAME=RUN", help="may be given several times")
    page.add_argument("--out", type=new_file, help="file to write; report.html in the folder by default")
    page.set_defaults(run=run_page)

    moments = ways.add_parser("moments", help="FID moments of a folder of reference pictures, for FID's `reference`")
    moments.add_argument("pictures", type=existing("folder"), help="folder of pictures, at any depth")
    moments.add_argument("out", type=new_file, help=".npz file to write")
    moments.add_argument(
        "--inception", type=existing("file"), help="weights of Inception; the micro world's network if not given"
    )
    moments.add_argument("--crop", action="store_true", help="cut out the middle square, as for COCO")
    moments.set_defaults(run=run_moments)

    rows = ways.add_parser("rows", help="train and evaluate the rows of the tables, resumable (`make ablations`)")
    rows.add_argument("rows", nargs="*", help="names of the rows to run; those of the groups if none is given")
    _add_row_options(rows)
    rows.add_argument("--group", action="append", help="group of rows and evaluations to run: main (Tables 1 to 3), "
                      "ablation, or seeds (every metric and controls: `make seeds`); may be given several times; main "
                      "and ablation if not given")  # fmt: skip
    rows.add_argument(
        "--seeds", type=in_range("number"), nargs="+", help="training seeds; each row's defaults if not given"
    )
    rows.add_argument("--list", action="store_true", help="list the rows and exit")
    rows.add_argument("--dry", action="store_true", help="print the commands and run nothing")
    rows.add_argument("--shared", type=Path, default=Path("lightning_logs"), help="folder of the shared trainings")
    rows.add_argument("--logs", type=Path, default=Path("lightning_logs/rows"), help="folder of the rows' runs")
    rows.add_argument("--lightning", default="lightning", help="command that trains and evaluates")
    rows.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="arguments for every run; comes last")
    rows.set_defaults(run=run_rows)


def _add_row_options(parser: argparse.ArgumentParser) -> None:
    """Where rows are described and their results kept."""
    parser.add_argument("--configs", type=existing("folder", "name the configs/ of a clone"), default=Path("configs"),
                        help="folder whose rows/ and ablations/ "
                        "describe the rows (default: %(default)s)")  # fmt: skip
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder in which the results of "
                        "each row are kept (default: %(default)s)")  # fmt: skip


def run_table(options: argparse.Namespace) -> None:
    """Prints or writes the tables."""
    from m2chat.evaluation.charts import Bar, bar_charts
    from m2chat.evaluation.markup import latex, markdown, write_section
    from m2chat.evaluation.paper import NOTE
    from m2chat.evaluation.rows import RunFolders, read_rows
    from m2chat.evaluation.tables import every_metric, paper_tables, plotted

    rows = read_rows(options.configs)
    if options.group == "seeds":
        logs = options.logs or Path("lightning_logs")
        folders = RunFolders(logs, logs / "rows")
        tables = every_metric(rows, options.results, folders, options.seeds)
        notes = ["Written by `make seeds` from its runs; edit nothing here.", NOTE]
    else:
        tables = paper_tables(rows, options.results, options.logs)
        notes = [
            "Written by `make tables` from the files in `docs/results/`, which `make ablations` makes; edit nothing "
            "here.",
            "Mean ± half of the 95 % interval of the mean over training seeds (their number); of one seed, the "
            "interval is over samples.",
            NOTE,
        ]
    text = latex(tables) if options.format == "latex" else markdown(tables, notes)
    if options.into is None:
        print(text)
    elif options.format == "markdown":
        write_section(options.into, text, "seeds" if options.group == "seeds" else "rows")
    else:
        options.into.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.into, [text])
    if options.plot is not None:
        charts = {
            title: [Bar(label, item.value, item.low, item.high) for label, item in values]
            for title, values in plotted(rows, options.results).items()
        }
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.plot, [bar_charts(charts)])


def run_compare(options: argparse.Namespace) -> None:
    """Prints every metric's difference and whether it is significant, and the shares of correct pictures.

    Raises:
        UserError: If too few samples have values in both to compare anything.
    """
    from m2chat.evaluation.compare import compare, compare_pictures, sample_counts
    from m2chat.evaluation.markup import Cells, aligned
    from m2chat.evaluation.names import metric_name

    cells: Cells = [("metric", "A", "B", "A - B, 95 % interval", "p", "n", "")]
    differences = compare(options.a, options.b)
    if not differences:
        raise UserError(f"no metric has values of at least 2 samples in both {options.a} and {options.b}")
    for item in differences:
        verdict = "significant" if item.significant else "not significant"
        interval = f"{item.first - item.second:+.2f} [{item.low:+.2f}, {item.high:+.2f}]"
        values = (f"{item.first:.2f}", f"{item.second:.2f}", interval, f"{item.p:.3f}", str(item.n), verdict)
        cells.append((metric_name(item.metric).plain, *values))
    print(aligned(cells))
    of_a, of_b, both = sample_counts(options.a, options.b)
    if both < max(of_a, of_b):
        print(f"A has {of_a} samples and B {of_b}: the {both} that both have are compared, the others are left out.")
    print("Paired bootstrap over samples; FID has no value for single samples and is not compared.")
    if options.pictures:
        cells = [("pictures judged again", "%", "95 % interval", "n")]
        for name, share in compare_pictures(options.a, options.b, options.world).items():
            cells.append(
                (metric_name(name).plain, f"{share.value:.2f}", f"[{share.low:.2f}, {share.high:.2f}]", str(share.n))
            )
        print(f"\n{aligned(cells)}")


def run_swap(options: argparse.Namespace) -> None:
    """Prints the table and, for each decoder, whether the meaning is kept."""
    from m2chat.commands.evaluation.swap import MEANING, swap
    from m2chat.evaluation.markup import Cells, aligned

    extra = [item for item in options.extra if item != "--"]
    out = options.out or options.run_folder / "swap"
    rows = swap(options.run_folder, options.decoder, out, options.lightning, options.tolerance, extra)
    cells: Cells = [("decoder", "metric", "of RUN", "swapped", "swapped - RUN, 95 % interval", "n")]
    titles = {**MEANING, "gate": "gate", "seconds": "seconds a picture"}
    for row in rows:
        for number, item in enumerate(row.differences):
            digits = 4 if item.metric in ("seconds", "gate") else 2
            interval = f"{item.first - item.second:+.{digits}f} [{item.low:+.{digits}f}, {item.high:+.{digits}f}]"
            values = (f"{item.second:.{digits}f}", f"{item.first:.{digits}f}", interval, str(item.n))
            cells.append((row.name if number == 0 else "", titles[item.metric], *values))
    print(aligned(cells))
    print("Paired bootstrap over samples, from the same noise; seconds are of steps and VAE, without words.")
    for row in rows:
        times = next(item for item in row.differences if item.metric == "seconds")
        print(
            f"{row.name}: {row.steps} steps, guidance {row.guidance:g}; {_meaning(row.verdict, options.tolerance)}; "
            f"{times.second / times.first:.1f} x as fast; {row.folder}"
        )


def _meaning(verdict: MeaningVerdict | None, tolerance: float) -> str:
    """A verdict in words, with the difference that it rests on."""
    if verdict is None:
        return "no picture was judged"
    right = verdict.right
    change = right.first - right.second
    states = {
        "kept": "the meaning is kept",
        "lost": "THE MEANING IS NOT KEPT",
        "undecided": f"UNDECIDED with {right.n} pictures",
    }
    needed = f"; about {verdict.needed:,} pictures would decide" if verdict.needed else ""
    side = "within" if abs(change) <= tolerance else "not within"
    return (
        f"{states[verdict.state]} (right pictures {change:+.2f} [{right.low:+.2f}, {right.high:+.2f}] points, "
        f"{side} {tolerance:g}{needed})"
    )


def run_folder(options: argparse.Namespace) -> None:
    """Scores another system's outputs."""
    from m2chat.commands.evaluation.folder import score_folder
    from m2chat.evaluation.page import report

    print(report(score_folder(options.jsonl, options.out, options.config, options.reference, options.name)))


def run_page(options: argparse.Namespace) -> None:
    """Writes the page."""
    from m2chat.evaluation.page import write_page

    beside = {}
    for item in options.beside:
        name, equals, folder = item.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--beside {item!r}: write NAME=RUN, such as SDXL=lightning_logs/RUN")
        beside[name] = Path(folder)
    print(write_page(options.run_folder, beside, options.out))


def run_moments(options: argparse.Namespace) -> None:
    """Writes the moments."""
    from m2chat.commands.evaluation.moments import left_out, moments_of_folder

    count = moments_of_folder(options.pictures, options.out, options.inception, options.crop)
    out = options.out if options.out.suffix == ".npz" else options.out.with_name(f"{options.out.name}.npz")
    print(f"{out}: {count} pictures")
    if others := left_out(options.pictures):
        kinds = ", ".join(f"{number} x {suffix}" for suffix, number in sorted(others.items()))
        print(f"left out, since such files are not decoded: {kinds}")


def run_rows(options: argparse.Namespace) -> None:
    """Runs the rows."""
    from m2chat.commands.evaluation.run import Runner
    from m2chat.evaluation.rows import GROUPS, TABLES, RunFolders, choose, read_rows

    # A row that is named is run as a whole unless a group limits its evaluations.
    groups = options.group or (GROUPS if options.rows else TABLES)
    rows = choose(read_rows(options.configs), options.rows, groups)
    if options.list:
        for row in rows:
            names = ", ".join(name.removeprefix("eval_") for name in row.evaluations(groups))
            print(f"{row.name:16} {row.title:40} seeds {' '.join(map(str, row.seeds)):6} {names}")
        return
    extra = tuple(item for item in options.extra if item != "--")
    folders = RunFolders(options.shared, options.logs)
    runner = Runner(folders, options.results, options.configs, options.lightning, extra, options.dry)
    for row in rows:
        for seed in options.seeds or row.seeds:
            runner.row(row, seed, row.evaluations(groups))
