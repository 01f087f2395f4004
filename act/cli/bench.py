"""`vitcompress bench`: latency, throughput and accuracy of exported files side by side."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.cli.common import json_file_argument, unwritable
from act.cli.output import note, number, print_json, table, warn
from act.errors import InputError

if TYPE_CHECKING:
    from act.bench.profile import NodeTime
    from act.bench.report import Bench

HELP = "time exported files against the original, in every runtime"
DESCRIPTION = """\
Times exported files and the uncompressed original in one process, in turns: every round runs each of them once, in
rotating order. Each FILE is an .onnx, an OpenVINO .xml, or a finished run folder, which brings its files and its
original. Speed-ups are against the original in float32 and in the runtime's half precision, in the same runtime."""
EPILOG = """\
Words of the form key=value change the recipe of --recipe; like files, they may stand before and after options.

examples:
  vitcompress bench runs/quickstart --batch 1,8
  vitcompress bench a.onnx b.onnx --baseline fp32.onnx --threads 2 --profile
  vitcompress bench runs/quickstart --recipe quickstart --picture bench.svg --json bench.json
  vitcompress bench runs/quickstart --recipe quickstart --batch 1,8 data.limit_val=100
  vitcompress bench runs/quickstart --peers --recipe quickstart
"""
TOP_NODES = 25


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="exported files and run folders; also key=value")
    parser.add_argument("--baseline", metavar="FILE", type=Path, help="the uncompressed model (default: the run's own)")
    parser.add_argument("--batch", default="1,8", metavar="N,...", help="batch sizes (default: %(default)s)")
    parser.add_argument("--backend", metavar="NAME,...", help="runtimes to use (default: all that can run here)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads of the runtimes (default: all)")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="timed rounds (default: %(default)s)")
    parser.add_argument("--half", action="store_true", help="run the compressed files in half precision, too")
    parser.add_argument("--recipe", metavar="RECIPE", help="score all files on data.val of this recipe")
    json_file_argument(parser)
    parser.add_argument("--picture", type=Path, metavar="OUT.svg", help="draw latency against accuracy")
    parser.add_argument(
        "--peers",
        nargs="?",
        const="all",
        metavar="NAME,...",
        help="also quantise the original with other tools, calibrated by the images of --recipe or of the run folder",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files of --peers there")
    parser.add_argument(
        "--profile",
        nargs="?",
        const="operators",
        choices=("operators", "nodes"),
        help="where the time goes, by operator or by node, at the first batch size",
    )


def command(args: argparse.Namespace) -> int:
    """Measure and print."""
    overrides = [word for word in args.files if "=" in word and not Path(word).exists()]
    files = [Path(word) for word in args.files if word not in overrides]
    if overrides and args.recipe is None:
        raise InputError(f"{overrides[0]}: no such file; key=value changes a recipe, so it needs --recipe")
    batches = _checked(args)
    from act.bench.peers import choose_peers
    from act.bench.report import Options, run_bench

    with _folder(args.keep) as folder:
        options = Options(
            files,
            args.baseline,
            batches,
            args.backend.split(",") if args.backend is not None else None,
            args.threads,
            args.repeats,
            args.half,
            args.recipe,
            overrides,
            args.profile is not None,
            args.picture is not None,
            choose_peers(args.peers) if args.peers is not None else [],
            folder,
        )
        _output(run_bench(options, note), args)
    return 0


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where the peers write: `keep`, or a folder that is removed at the end."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="vitcompress-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--keep: {keep} cannot be written ({error.strerror}); choose another folder") from None
    yield keep


def _output(bench: Bench, args: argparse.Namespace) -> None:
    from act.run.atomic import write_json, write_text

    if args.picture is not None:
        from act.bench.picture import picture

        write_text(args.picture, picture(bench.rows, f"{bench.cpu}, {bench.threads}"))
    if str(args.json) == "-":
        print_json(bench.as_json())
        return
    if args.json is not None:
        write_json(args.json, bench.as_json())
    show(bench)
    if args.profile is not None:
        _show_profiles(bench, args.profile)


def _checked(args: argparse.Namespace) -> list[int]:
    """The batch sizes; InputError for every option out of range."""
    problems = []
    words = [word for word in str(args.batch).split(",") if word]
    if not words or not all(word.isdecimal() and 1 <= int(word) <= 65_536 for word in words):
        problems.append(f"--batch: {args.batch}; allowed: numbers from 1 to 65536, separated by commas")
    for name, least, most in (("threads", 0, 4096), ("repeats", 1, 100_000)):
        if not least <= getattr(args, name) <= most:
            problems.append(f"--{name}: {getattr(args, name)}; allowed: {least} to {most}")
    for name in ("json", "picture"):
        path = getattr(args, name)
        if path is not None and str(path) != "-":
            problems += unwritable(f"--{name}", path)
    if args.keep is not None and args.peers is None:
        problems.append("--keep: keeps the files of --peers, which is not given")
    if problems:
        raise InputError(problems)
    return list(dict.fromkeys(int(word) for word in words))


def show(bench: Bench) -> None:
    """The table, and remarks on stderr on everything that is not in it."""
    metrics = [name for name in ("top1", "agreement") if any(name in row.variant.figures for row in bench.rows)]
    several = len({row.variant.backend for row in bench.rows}) > 1
    first = bench.rows[0].variant.backend
    columns = ["file", "runtime", "batch", "median ms", "p90 ms", "images/s", "vs FP32", "vs half"]
    columns += [f"vs FP32 {first}"] * several + [*metrics, "bytes"]
    rows = []
    for row in bench.rows:
        variant = row.variant
        half = "none" if variant.backend in bench.opened.no_half and row.vs_fp32 is not None else _times(row.vs_half)
        cells: list[Any] = [variant.source.name, f"{variant.backend} {variant.precision}", row.batch]
        cells += [
            f"{row.median_ms:.2f}",
            f"{row.p90_ms:.2f}",
            f"{row.images_per_second:.1f}",
            _times(row.vs_fp32),
            half,
        ]
        cells += [_times(row.vs_reference)] * several
        cells += [f"{variant.figures[name]:.2f}" if name in variant.figures else "-" for name in metrics]
        rows.append([*cells, number(variant.source.bytes)])
    table(f"{bench.cpu}, {bench.threads}, {bench.repeats} rounds", columns, rows, right=columns[2:])
    if not any(row.vs_fp32 is not None for row in bench.rows):
        note("no original to compare with; give --baseline FILE for the speed-ups")
    for name, reason in bench.opened.no_half.items():
        note(f"{name} has no half-precision baseline here: {reason}")
    for what, reason in bench.opened.skipped:
        note(f"left out: {what}: {reason}")
    if bench.unsteady:
        warn(f"the machine was busy while timing ({'; '.join(bench.unsteady)}): do not rely on these")


def _show_profiles(bench: Bench, mode: str) -> None:
    from act.bench.profile import by_kind, by_operator

    for name, nodes in bench.profiles.items():
        kinds = ", ".join(f"{share:.0f} % {kind}" for kind, share in by_kind(nodes).items())
        total = sum(node.milliseconds for node in nodes)
        print()
        operators = [
            [item.operator, item.kind, item.count, f"{item.milliseconds:.3f}", f"{item.share:.1f}"]
            for item in by_operator(nodes)
        ]
        title = f"{name}, batch {bench.batches[0]}: {total:.2f} ms in operators; {kinds}"
        table(title, ["operator", "arithmetic", "count", "ms", "share %"], operators, right=["count", "ms", "share %"])
        if mode == "nodes":
            _show_nodes(nodes, total)


def _show_nodes(nodes: list[NodeTime], total: float) -> None:
    top = sorted(nodes, key=lambda node: -node.milliseconds)[:TOP_NODES]
    rows = [
        [
            node.name,
            node.operator,
            node.kind,
            f"{node.milliseconds:.3f}",
            f"{100 * node.milliseconds / (total or 1):.1f}",
        ]
        for node in top
    ]
    table(
        f"the {len(top)} most expensive of {len(nodes)} nodes",
        ["node", "operator", "arithmetic", "ms", "share %"],
        rows,
        right=["ms", "share %"],
    )


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f}x"
