"""`selfedit reproduce PLAN.yaml`: the runs of a plan, one after another, then their table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from selfedit.methods.plan import Plan
    from selfedit.methods.reproduce import Reproduction


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="PLAN.yaml", help="models, and the settings of their runs (docs/reproduce.md)")
    parser.add_argument("--out", metavar="DIR", help="where its runs and table go [runs/ and the plan's name]")
    parser.add_argument("--workers", type=int, metavar="N", help="workers of a local Ray; 0: this process")
    parser.add_argument("--ray", metavar="ADDRESS", help="address of a Ray cluster to join: auto, or ray://host:port")
    parser.add_argument("--plan", action="store_true", help="only say what each run, and all together, take at most")


def run(arguments: argparse.Namespace, say: Callable[[str], None], console: Console) -> Any:
    """Performs the runs and writes their table, or plans them; returns what `--json` prints."""
    from selfedit.methods.reproduce import check, read_plan, rehearsal, reproduce, total

    plan = read_plan(Path(arguments.file), workers=arguments.workers, ray=arguments.ray)
    out = Path(arguments.out or Path("runs") / Path(arguments.file).stem)
    check(plan, out, keys=not arguments.plan)
    if arguments.plan:
        plans = rehearsal(plan)
        together = total(plans.values())
        say(_planned(plan, {**plans, "all together": together}))
        return {"runs": {name: asdict(one) for name, one in plans.items()}, "total": asdict(together)}
    from selfedit.cli.progress import make_progress
    from selfedit.reports.report import report
    from selfedit.reports.reproduction import read_reproduction, to_json, write_reproduction
    from selfedit.runs.files import begin_privately
    from selfedit.runs.lock import RunLock

    if not out.exists():
        rehearsal(plan)  # so that what is missing for the last run is known before the first
    begin_privately(out)
    lock = RunLock(out / "lock")
    progress = make_progress()

    def perform(method: Callable[..., Any], settings: Any) -> None:
        progress.note(f"{settings.out}: {method.__name__} {settings.model}")
        method(settings, progress=progress)
        report([settings.out], charts=True)

    try:
        reproduce(plan, out, perform)
    finally:
        progress.close()
        lock.release()
    found = read_reproduction(out, plan.rows, external=plan.external is not None, reported=plan.reported)
    page = write_reproduction(out, found, console)
    say(f"\nreport: {page}\nchart:  {page.with_suffix('.png')}")
    return to_json(found)


def _planned(plan: Reproduction, plans: Mapping[str, Plan]) -> str:
    """The most that each run takes and, in brackets, what is likely; what the devices cost; what others paid."""
    from selfedit.reports.reproduction import reported_notes

    lines = [f"{'':<34} {'fits':>7} {'training tokens':>21} {'PFLOP':>19} {'GB':>4}  US dollars of APIs"]
    for name, one in plans.items():
        usd = f"{one.cost_usd:,.2f} for {one.calls:,} calls, {one.edits_usd:,.2f} of it for edits"
        lines.append(
            f"{name[:34]:<34} {one.fits:>7,} {one.train_tokens / 1e6:>9,.1f} M ({one.train_tokens_likely / 1e6:,.1f} M)"
            f" {one.flops / 1e15:>10,.1f} ({one.flops_likely / 1e15:,.1f}) {one.memory_bytes / 1e9:>4,.0f}"
            f"  {usd if one.calls else 'none'}"
        )
    hourly = plan.settings.get("usd_per_hour")
    if plan.device_tflops and hourly is not None:
        whole = plans["all together"]
        hours, likely = (flops / (plan.device_tflops * 1e12) / 3600 for flops in (whole.flops, whole.flops_likely))
        lines.append(
            f"devices: at most {hours:,.1f} hours for {hours * hourly:,.2f} US dollars, likely {likely:,.1f} for"
            f" {likely * hourly:,.2f}, if one does {plan.device_tflops:g} TFLOPS"
        )
    return "\n".join(lines + (reported_notes() if plan.reported else []))
