"""`m2chat eval`: tables, comparisons and pages of evaluations, the rows of the tables, and other systems' outputs."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2chat.errors import UserError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands."""
    parser = commands.add_parser("eval", help="tables, comparisons and pages of evaluations; other systems' outputs")
    ways = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    table = ways.add_parser("table", help="the paper's tables from kept results")
    table.add_argument("--results", type=Path, default=Path("docs/results"), help="holds a folder a row")
    table.add_argument("--logs", type=Path, default=Path("lightning_logs"), help="the newest run there is added")
    table.add_argument("--format", choices=("markdown", "latex"), default="markdown")
    table.add_argument("--into", type=Path, help="markdown file whose section `rows` to write, instead of printing")
    table.add_argument("--plot", type=Path, help="SVG file to write")
    table.set_defaults(run=run_table)

    compare = ways.add_parser("compare", help="are two evaluations of the same samples different? paired bootstrap")
    compare.add_argument("a", type=Path, help="folder of an evaluation")
    compare.add_argument("b", type=Path, help="folder of another, on the same samples")
    compare.set_defaults(run=run_compare)

    folder = ways.add_parser("folder", help="score pictures and replies that another system has left on disk")
    folder.add_argument("jsonl", type=Path, help="a line a sample: docs/evaluation.md says what it holds")
    folder.add_argument("out", type=Path, help="folder for results.json, predictions.jsonl and report.html")
    folder.add_argument(
        "--config", type=Path, required=True, help="whose metrics to use, such as configs/eval_coco.yaml"
    )
    folder.add_argument("--truth", type=Path, help="an evaluation whose samples, by id, are the reference")
    folder.add_argument("--name", default="", help="of the system")
    folder.set_defaults(run=run_folder)

    page = ways.add_parser("page", help="write report.html again, other evaluations' pictures beside (Fig. 4)")
    page.add_argument("run_folder", metavar="RUN", type=Path, help="folder of an evaluation")
    page.add_argument("--beside", action="append", default=[], metavar="NAME=RUN", help="may be given several times")
    page.add_argument("--out", type=Path, help="file to write; report.html in the folder by default")
    page.set_defaults(run=run_page)

    moments = ways.add_parser("moments", help="FID moments of a folder of true pictures, for FID's `reference`")
    moments.add_argument("pictures", type=Path, help="folder of pictures, at any depth")
    moments.add_argument("out", type=Path, help=".npz file to write")
    moments.add_argument("--inception", type=Path, help="weights of Inception; else the micro world's network")
    moments.add_argument("--crop", action="store_true", help="cut out the middle square, as for COCO")
    moments.set_defaults(run=run_moments)

    rows = ways.add_parser("rows", help="train and evaluate the rows of the tables, resumable (`make ablations`)")
    rows.add_argument("rows", nargs="*", help="rows to run; all by default")
    rows.add_argument("--seeds", type=int, nargs="+", help="training seeds; each row's own by default")
    rows.add_argument("--list", action="store_true", help="only list them")
    rows.add_argument("--dry", action="store_true", help="only say what would be run")
    rows.add_argument("--shared", type=Path, default=Path("lightning_logs"), help="holds seed_<n> of `make seeds`")
    rows.add_argument("--logs", type=Path, default=Path("lightning_logs/rows"), help="where the rows are logged")
    rows.add_argument("--results", type=Path, default=Path("docs/results"), help="where results are kept")
    rows.add_argument("--lightning", default="lightning", help="the command")
    rows.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="arguments for every run; comes last")
    rows.set_defaults(run=run_rows)


def run_table(options: argparse.Namespace) -> None:
    """Prints or writes the tables."""
    from m2chat.commands.evaluation.rows import ROWS
    from m2chat.evaluation.row_tables import TableRow, all_tables, latex, markdown, plots
    from m2chat.evaluation.tables import write_section

    rows = [TableRow(row.name, row.title, row.group, row.paper) for row in ROWS]
    tables = all_tables(rows, options.results, options.logs)
    text = markdown(tables) if options.format == "markdown" else latex(tables)
    if options.into is None:
        print(text)
    elif options.format == "markdown":
        write_section(options.into, text, "rows")
    else:
        options.into.write_text(text, encoding="utf-8")
    if options.plot is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(plots(rows, options.results), encoding="utf-8")


def run_compare(options: argparse.Namespace) -> None:
    """Prints every metric's difference, and whether it is more than luck."""
    from m2chat.evaluation.paired import differences
    from m2chat.evaluation.report import aligned

    rows = [("metric", "A", "B", "A - B, 95 % interval", "p", "n", "")]
    for item in differences(options.a, options.b):
        says = "significant" if item.significant else "not significant"
        interval = f"{item.first - item.second:+.2f} [{item.low:+.2f}, {item.high:+.2f}]"
        rows.append(
            (item.metric, f"{item.first:.2f}", f"{item.second:.2f}", interval, f"{item.p:.3f}", str(item.n), says)
        )
    print(aligned(rows))
    print("Paired bootstrap over samples; FID has no value for single samples and is not compared.")


def run_folder(options: argparse.Namespace) -> None:
    """Scores another system's outputs."""
    from m2chat.commands.evaluation.folder import score_folder
    from m2chat.evaluation.report import report

    print(report(score_folder(options.jsonl, options.out, options.config, options.truth, options.name)))


def run_page(options: argparse.Namespace) -> None:
    """Writes the page."""
    from m2chat.evaluation.page import write_page

    beside = {}
    for item in options.beside:
        name, equals, folder = item.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--beside {item!r}: write NAME=RUN, such as SDXL=lightning_logs/version_3")
        beside[name] = Path(folder)
    print(write_page(options.run_folder, beside, options.out))


def run_moments(options: argparse.Namespace) -> None:
    """Writes the moments."""
    from m2chat.commands.evaluation.folder import moments_of_folder

    count = moments_of_folder(options.pictures, options.out, options.inception, options.crop)
    print(f"{options.out}: {count} pictures")


def run_rows(options: argparse.Namespace) -> None:
    """Runs the rows."""
    from m2chat.commands.evaluation.rows import ROWS
    from m2chat.commands.evaluation.run import Runner, chosen

    rows = chosen(ROWS, options.rows)
    if options.list:
        for row in rows:
            tests = ", ".join(name.removeprefix("eval_") for name in row.tests)
            print(f"{row.name:16} {row.title:40} seeds {' '.join(map(str, row.seeds)):6} {tests}")
        return
    extra = tuple(item for item in options.extra if item != "--")
    runner = Runner(options.shared, options.logs, options.results, options.lightning, extra, options.dry)
    for row in rows:
        for seed in options.seeds or row.seeds:
            runner.row(row, seed)
