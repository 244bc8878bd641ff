"""Measure every row, print the table, write the CSV: ``python -m benchmarks --help``."""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import (
    data,
    deployment,
    embedding,
    evaluation,
    feed,
    memory,
    optimizers,
    shrinking,
    step,
)
from benchmarks.timing import ROOT, Result, Row, Setting, machine, measure

THEMES = {
    "feed": feed,
    "step": step,
    "optimizers": optimizers,
    "shrinking": shrinking,
    "evaluation": evaluation,
    "embedding": embedding,
    "deployment": deployment,
    "data": data,
    "memory": memory,
}
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    """Measure the rows that the command line names."""
    arguments = _parser().parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here; write --device cpu")
    rows = {f"{theme}.{name}": r for theme, m in THEMES.items() for name, r in m.ROWS.items()}
    chosen = [n for n in rows if any(n.startswith(only) for only in arguments.only or [""])]
    if arguments.list or not chosen:
        raise SystemExit("rows: " + ", ".join(rows))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        setting = Setting(device, Path(folder), arguments.quick)
        where = machine(setting)
        print(" | ".join(f"{k} {v}" for k, v in where.items()), flush=True)
        print(_line("row", "what", "against", "ours", "theirs", "ratio", "target", ""), flush=True)
        print(_line(*["---"] * 8), flush=True)
        results = {}
        for name in chosen:
            results[name] = measure(rows[name], setting)
            print(_line(*_cells(name, results[name])), flush=True)
        print(f"{time.monotonic() - start:.0f} s")
        whole = not arguments.quick and not arguments.only
        path = arguments.csv or (RESULTS / f"{device}.csv" if whole else None)
        if path is not None:
            _write(Path(path), results, where)
            print(f"written to {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows whose names start with this")
    parser.add_argument("--quick", action="store_true", help="two turns per row: does it work?")
    parser.add_argument("--csv", help="where to write; all rows: results/<device>.csv")
    parser.add_argument("--list", action="store_true", help="name the rows")
    return parser


def _cells(name: str, result: Result) -> list[str]:
    row = result.row
    if row.memory:
        ours, theirs, ratio = f"{result.peak_mib:.0f} MiB", "", ""
    else:
        ours, theirs = (f"{_number(v)} {row.unit}" for v in (result.ours, result.theirs))
        ratio = _number(result.ratio) if row.theirs else ""
        theirs = theirs if row.theirs else ""
    if result.note:
        ours = theirs = ratio = ""
    return [name, row.what, row.against, ours, theirs, ratio, _target(row), result.verdict]


def _number(value: float) -> str:
    """Write a number with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    return f"{'<=' if row.at_most else '>='} {row.target:g}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _write(path: Path, results: dict[str, Result], where: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["row", "what", "against", "ours", "theirs", "unit", "ratio", "target", "verdict",
             "turns", "peak_mib", *where]
        )  # fmt: skip
        for name, r in results.items():
            figures = [f"{r.ours:.6g}", f"{r.theirs:.6g}", r.row.unit, f"{r.ratio:.4g}"]
            figures = ["" if figure == "nan" else figure for figure in figures]
            peak = "" if r.note else f"{r.peak_mib:.0f}"
            writer.writerow(
                [name, r.row.what, r.row.against, *figures, _target(r.row), r.verdict, r.turns,
                 peak, *where.values()]
            )  # fmt: skip


if __name__ == "__main__":
    main()
