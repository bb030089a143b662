"""The commands: settings in, a method called, its result printed.

Everything heavy is imported inside the function that needs it, after what the user may have mistyped was read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfedit.cli import reproduce
from selfedit.cli.asking import adapter_flags, ask, ask_flags, serve, serve_flags
from selfedit.errors import UserError
from selfedit.text import counted, printable

if TYPE_CHECKING:
    from rich.console import Console

    from selfedit.methods.learn import Learned
    from selfedit.methods.settings import Settings
    from selfedit.runs.summary import Summary


@dataclass(frozen=True)
class Command:
    """`run` returns what `--json` prints."""

    help: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Any]


def _say(arguments: argparse.Namespace, text: str) -> None:
    """The result for people: standard output, or standard error where standard output belongs to `--json`."""
    print(printable(text), file=sys.stderr if arguments.json else sys.stdout)


def _console(arguments: argparse.Namespace) -> Console:
    from rich.console import Console

    return Console(stderr=arguments.json)


# compare, sweep, learn, train, continual


def _method_flags(settings: str, **options: Any) -> Callable[[argparse.ArgumentParser], None]:
    """What adds the flags of a class of settings, and `--plan`."""

    def add(parser: argparse.ArgumentParser) -> None:
        from selfedit.cli.flags import add_settings
        from selfedit.methods import settings as classes

        add_settings(parser, getattr(classes, settings), **options)
        parser.add_argument(
            "--plan",
            action="store_true",
            help="only say how many fits, tokens, operations, how much memory and money the run takes at most",
        )

    return add


def _settings(arguments: argparse.Namespace, kind: str) -> Any:
    from selfedit.cli.flags import read_settings
    from selfedit.methods import settings as classes

    return read_settings(getattr(classes, kind), arguments)


def run_method(
    arguments: argparse.Namespace,
    settings: Settings,
    name: str,
    show: Callable[[argparse.Namespace, Path, Any], Any] | None = None,
) -> Any:
    """Runs the method `name` ("module.function" below `methods`), or plans it, and shows its result.

    `show` prints the result and returns it as plain data; by default the result is a summary.
    """
    module, function = name.split(".")
    method = getattr(import_module(f"selfedit.methods.{module}"), function)
    if arguments.plan:
        from selfedit.methods.plan import plan

        planned = plan(method, settings)
        _say(arguments, planned.text())
        return asdict(planned)
    from selfedit.cli.progress import make_progress

    progress = make_progress()
    try:
        result = method(settings, progress=progress)
    finally:
        progress.close()
    return (show or _show_summary)(arguments, settings.out, result)


def _show_summary(arguments: argparse.Namespace, out: Path, summary: Summary) -> Any:
    from selfedit.reports.report import report

    page, charts = report([out], charts=True, console=_console(arguments))
    _say(arguments, f"\nreport: {page}" + (f"\nchart:  {charts[0]}" if charts else ""))
    return summary.to_json()


def _compare(arguments: argparse.Namespace) -> Any:
    if isinstance(arguments.model, list):
        if len(arguments.model) > 1:
            return _compare_models(arguments, arguments.model)
        (arguments.model,) = arguments.model
    return run_method(arguments, _settings(arguments, "CompareSettings"), "compare.compare")


def _compare_models(arguments: argparse.Namespace, models: list[str]) -> Any:
    """One run per model, below --out, and one page that compares them."""
    from selfedit.methods.naming import run_names
    from selfedit.models import local_path
    from selfedit.reports.report import report
    from selfedit.runs.files import begin_privately

    if len(set(models)) < len(models):
        raise UserError(f"--model {next(m for m in models if models.count(m) > 1)}: given twice")
    arguments.model = models[0]
    out = _settings(arguments, "CompareSettings").out
    names = run_names(models)
    for model, name in zip(models, names, strict=True):
        if not (out / name / "summary.json").exists():
            local_path(model)
    if not arguments.plan and not out.exists():
        begin_privately(out)  # the page shows what the runs hold
    folders, results = [], []
    for model, name in zip(models, names, strict=True):
        if arguments.plan:
            _say(arguments, f"{model}:")
        arguments.model = model
        arguments.out = str(out / name)
        results.append(_compare(arguments))
        folders.append(Path(arguments.out))
    if not arguments.plan:
        page, _ = report(folders, console=_console(arguments))
        _say(arguments, f"\nreport: {page}")
    return results


def _learn(arguments: argparse.Namespace) -> Any:
    settings = _settings(arguments, "LearnSettings")
    if settings.add is not None:
        from selfedit.methods.stacking import model_of_earlier

        settings = model_of_earlier(settings)
    if "out" not in settings.model_fields_set and settings.documents and not arguments.plan:
        from selfedit.methods.naming import directory_by_content

        settings = settings.model_copy(update={"out": directory_by_content(settings)})
    return run_method(arguments, settings, "learn.learn", _show_learned)


def _show_learned(arguments: argparse.Namespace, out: Path, learned: Learned) -> Any:
    from selfedit.methods.model_card import loading
    from selfedit.reports.report import report

    page, _ = report([out], console=None if learned.summary is None else _console(arguments))
    if learned.summary is not None:
        _say(arguments, "")
    loss = "" if learned.last_loss is None else f", last loss {learned.last_loss:.2f}"
    adapter = f"{learned.adapter}, one per document" if learned.routed else learned.adapter
    _say(
        arguments,
        f"report:  {page}\n"
        f"learned: {counted(learned.documents, 'document')}, {learned.train_tokens:,} training tokens{loss}\n"
        f'adapter: {adapter}\nask it:  selfedit ask {out} "your question"\nserve:   selfedit serve {out}',
    )
    if not learned.recites:
        ways = loading(str(learned.adapter), learned.model, rank=learned.rank, chat=learned.chat, routed=learned.routed)
        _say(arguments, "load it:\n" + "\n".join(f"  {name}: {line}" for name, line in ways.items()))
    kind = "per-document" if learned.routed else "recite" if learned.recites else "joint"
    return {
        "adapter": str(learned.adapter),
        "adapters": kind,
        "documents": learned.documents,
        "train_tokens": learned.train_tokens,
        "last_loss": learned.last_loss,
        "summary": None if learned.summary is None else learned.summary.to_json(),
    }


# report, grade, cost, export


def _report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories; several are compared on one page")
    parser.add_argument("--out", metavar="FILE.html", help="where the page is written")


def _report(arguments: argparse.Namespace) -> Any:
    from selfedit.reports.report import report

    runs = [Path(run) for run in arguments.runs]
    page, _ = report(runs, Path(arguments.out) if arguments.out else None, console=_console(arguments))
    _say(arguments, f"\nreport: {page}")
    return {"report": str(page), "runs": [str(run) for run in runs]}


def _watch_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="the directory of a run, or of several, under way")
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between two looks [5]")


def _watch(arguments: argparse.Namespace) -> Any:
    from selfedit.reports.watching import watch

    if not 0 < arguments.every <= 86400:
        raise UserError(f"--every {arguments.every:g}: give seconds, more than 0 and at most a day")
    watch(Path(arguments.directory), _console(arguments), arguments.every)


def _grade_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="+", metavar="[check] FILE", help="rows to grade; with `check`, labelled rows to compare with"
    )
    parser.add_argument(
        "--grader",
        default="lexical",
        help="lexical (by shared words), judge:MODEL of an API, whose replies are kept in runs/grade, or"
        " judge:model:NAME, run here [lexical]",
    )
    parser.add_argument("--api-base", help="for a judge: an OpenAI-compatible endpoint; the key is OPENAI_API_KEY")
    parser.add_argument(
        "--judge-reasoning-effort", help="reasoning effort of an API's judge; a reasoning model needs one"
    )
    parser.add_argument("--out", metavar="FILE.jsonl", help="where graded rows go; standard output if left out")


def _grade(arguments: argparse.Namespace) -> Any:
    from selfedit.cli.grading import check_file, grade_file

    words = arguments.words
    if len(words) == 2 and words[0] == "check":
        if arguments.out:
            raise UserError("--out: `grade check` writes no rows; leave it out, or `check`")
        return check_file(arguments, Path(words[1]), lambda text: _say(arguments, text))
    if len(words) != 1:
        raise UserError("give one file: `selfedit grade FILE`, or `selfedit grade check FILE`")
    return grade_file(arguments, Path(words[0]))


def _cost_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="an API model")
    parser.add_argument("--input-tokens", type=int, default=0, metavar="N", help="tokens that it reads [0]")
    parser.add_argument("--output-tokens", type=int, default=0, metavar="N", help="tokens that it writes [0]")
    parser.add_argument("--batch", action="store_true", help="at the price of a batch")
    parser.add_argument(
        "--device-seconds", type=float, default=0.0, metavar="S", help="time of a device, with --usd-per-hour"
    )
    parser.add_argument("--usd-per-hour", type=float, metavar="X", help="price of the device")
    parser.add_argument(
        "--prices", metavar="FILE.yaml", help="your own prices, in the form of the built-in prices.yaml"
    )


def _cost(arguments: argparse.Namespace) -> Any:
    from selfedit.editors.prices import load_prices

    amounts = (arguments.input_tokens, arguments.output_tokens, arguments.device_seconds, arguments.usd_per_hour or 0)
    if min(amounts) < 0:
        raise UserError("tokens, seconds and prices cannot be negative")
    if arguments.model is None and not arguments.device_seconds:
        raise UserError("nothing to price: give --model with tokens, or --device-seconds with --usd-per-hour")
    usd = 0.0
    if arguments.model is not None:
        price = load_prices(arguments.prices).model(arguments.model)
        usd += price.cost(arguments.input_tokens, arguments.output_tokens, arguments.batch)
    if arguments.device_seconds:
        if arguments.usd_per_hour is None:
            raise UserError("--device-seconds needs --usd-per-hour")
        usd += arguments.device_seconds / 3600 * arguments.usd_per_hour
    _say(arguments, f"{usd:.4f} USD")
    given = ("model", "input_tokens", "output_tokens", "batch", "device_seconds")
    return {name: getattr(arguments, name) for name in given} | {"cost_usd": usd}


def _export_flags(parser: argparse.ArgumentParser) -> None:
    adapter_flags(parser, device=False)
    parser.add_argument(
        "out", help="the folder to write the merged model to, or the adapters, where there is one per document"
    )
    parser.add_argument(
        "--gguf",
        nargs="?",
        const="auto",
        choices=("auto", "f32", "f16", "bf16", "q8_0"),
        help="write a GGUF file too, and a Modelfile for Ollama, by llama.cpp's converter",
    )
    parser.add_argument(
        "--adapter-only", action="store_true", help="with --gguf: model and adapter as a file each, not merged"
    )


def _export(arguments: argparse.Namespace) -> Any:
    from selfedit.methods.export import export

    exported = export(
        Path(arguments.source),
        Path(arguments.out),
        model=arguments.model,
        dtype=arguments.dtype,
        gguf=arguments.gguf,
        adapter_only=arguments.adapter_only,
        trust_remote_code=arguments.trust_remote_code,
    )
    if exported.copied:
        _say(arguments, f"adapters: {exported.folder} ({exported.copied}, one per document, of {exported.model})")
    else:
        _say(arguments, f"model: {exported.folder} ({exported.model} with {exported.merged} adapter(s) merged)")
    return asdict(exported)


def _import_seal_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clone", help="your clone of the code that was released with the paper (arXiv 2506.10943)")
    parser.add_argument(
        "--out", default="seal", metavar="FOLDER", help="the new folder for what is read from it [seal]"
    )


def _import_seal(arguments: argparse.Namespace) -> Any:
    from selfedit.methods.import_seal import import_seal

    found = import_seal(Path(arguments.clone), Path(arguments.out))
    _say(arguments, f"prompts.yaml: {', '.join(found.prompts)}")
    for name, number in found.documents.items():
        _say(arguments, f"{name}: {number:,} documents")
    for name, number in found.edits.items():
        _say(arguments, f"{name}: {number:,} edits")
    for name in found.left_out:
        _say(arguments, f"left out: {name}: no edits in it")
    more = "" if found.most_texts is None else f"; this version of it also takes --set most_texts={found.most_texts}"
    _say(
        arguments,
        f"next: selfedit train --preset seal --prompt-file {found.folder / 'prompts.yaml'} --documents"
        f" {found.folder / 'train.jsonl'}{more}",
    )
    return asdict(found)


def _reproduce(arguments: argparse.Namespace) -> Any:
    return reproduce.run(arguments, lambda text: _say(arguments, text), _console(arguments))


def _doctor(arguments: argparse.Namespace) -> Any:
    from selfedit.cli.doctor import examine, text

    found = examine()
    _say(arguments, text(found))
    return found


def _method(help: str, kind: str, name: str) -> Command:
    """A command that is a method with its settings."""
    return Command(help, _method_flags(kind), lambda arguments: run_method(arguments, _settings(arguments, kind), name))


COMMANDS = {
    "compare": Command(
        "compare who should write the notes: the model, an API, a file, nobody",
        _method_flags("CompareSettings", repeated="model"),
        _compare,
    ),
    "sweep": _method(
        "try recipes and choose the one that teaches most and harms least", "SweepSettings", "sweep.sweep"
    ),
    "learn": Command(
        "teach a model a set of documents", _method_flags("LearnSettings", positional="documents"), _learn
    ),
    "ask": Command("ask learned adapters, once or in a chat", ask_flags, ask),
    "serve": Command("serve what was learned, as an OpenAI-compatible API", serve_flags, serve),
    "train": _method("train the model to write better notes (ReST-EM)", "TrainSettings", "restem.train"),
    "continual": _method(
        "learn documents one after another and see what is forgotten", "ContinualSettings", "continual.continual"
    ),
    "reproduce": Command(
        "make the runs of a plan, for several models and editors, and the table of their results",
        reproduce.add_flags,
        _reproduce,
    ),
    "watch": Command("show a run under way until it ends", _watch_flags, _watch),
    "report": Command("write the report of a run, or compare several", _report_flags, _report),
    "grade": Command("grade answers, or check a grader against labels", _grade_flags, _grade),
    "cost": Command("work out what API tokens and device time cost", _cost_flags, _cost),
    "export": Command("write a model with its adapters merged in", _export_flags, _export),
    "doctor": Command("show versions, devices, models, disk and Ray", lambda _: None, _doctor),
    "import-seal": Command(
        "read documents, edits and prompts of the published code from a clone of it", _import_seal_flags, _import_seal
    ),
}
