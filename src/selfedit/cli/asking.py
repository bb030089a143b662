"""`selfedit ask`: one question, or a chat that remembers what was said; of one adapter, or of several and the model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfedit.errors import UserError
from selfedit.text import printable

if TYPE_CHECKING:
    from selfedit.documents import Document
    from selfedit.methods.ask import Asker

Messages = list[dict[str, str]]


def adapter_flags(parser: argparse.ArgumentParser, *, name: str = "source", device: bool = True) -> None:
    """The flags of every command that takes what was learned: where it is, and how its model is loaded."""
    parser.add_argument(name, help="an adapter's folder, or the run directory of `learn`, `train` or `continual`")
    parser.add_argument("--model", help="the adapter's model; found from the adapter if left out")
    if device:
        parser.add_argument("--device", help="cpu, cuda, ...; the first accelerator if left out")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="precision of the model [auto]"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def ask_flags(parser: argparse.ArgumentParser) -> None:
    adapter_flags(parser, name="adapter")
    parser.add_argument("question", nargs="?", help="without one, a chat begins")
    parser.add_argument(
        "--with",
        dest="others",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a further adapter of the same model and shape; the first one is called `learned`",
    )
    parser.add_argument(
        "--compare", "--base", action="store_true", help="show the answers of all adapters and of the model without any"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=128, metavar="N", help="length of an answer at the most [128]"
    )


def ask(arguments: argparse.Namespace) -> Any:
    from selfedit.methods.ask import Asker

    if arguments.max_tokens < 1:
        raise UserError(f"--max-tokens {arguments.max_tokens}: an answer has at least 1 token")
    others = {}
    for given in arguments.others:
        name, equals, path = given.partition("=")
        if not equals or not name.strip() or not path or name in ("adapter", "question", "new") or name in others:
            raise UserError(f"--with {given}: write NAME=PATH, with a name of its own")
        others[name] = Path(path)
    asker = Asker(
        Path(arguments.adapter),
        others=others,
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        max_tokens=arguments.max_tokens,
        trust_remote_code=arguments.trust_remote_code,
    )
    if arguments.question is None:
        return _chat(arguments, asker)
    messages = [{"role": "user", "content": arguments.question}]
    found, document = _answer(arguments, asker, messages, asker.names[0])
    routed = {"document": document and document.id} if asker.routed else {}
    return {"question": arguments.question, "adapter": found.pop(asker.names[0]), **routed, **found}


def _chat(arguments: argparse.Namespace, asker: Asker) -> Messages:
    """Question and answer until the input ends; each answer sees what was said before."""
    from selfedit.methods.ask import BASE

    names = (*asker.names, BASE)
    messages: Messages = []
    speaker = asker.names[0]
    terminal = sys.stdin.isatty()
    if terminal:
        print("Ask away; an empty line or Ctrl-D ends the chat.", file=sys.stderr)
        print(f"/new forgets what was said; /NAME has it go on: {', '.join(names)}.", file=sys.stderr)
    while True:
        try:
            question = input(f"{speaker}> " if terminal else "").strip()
        except EOFError:
            break
        if not question:
            break
        if question == "/new":
            messages.clear()
        elif question.removeprefix("/") in names and question.startswith("/"):
            speaker = question.removeprefix("/")
        elif question.startswith("/") and " " not in question:
            print(f"no adapter {printable(question[1:], keep='')}: /new, /{', /'.join(names)}", file=sys.stderr)
        else:
            messages.append({"role": "user", "content": question})
            answers, _ = _answer(arguments, asker, messages, speaker)
            messages.append({"role": "assistant", "content": answers[speaker]})
    return messages


def _answer(
    arguments: argparse.Namespace, asker: Asker, messages: Messages, speaker: str
) -> tuple[dict[str, str], Document | None]:
    """Answers by name, shown: one as it comes, several side by side; and the document that they are of."""
    from selfedit.methods.ask import BASE

    out = sys.stderr if arguments.json else sys.stdout
    document = None
    if asker.routed and (arguments.compare or speaker != BASE):
        document = asker.document(messages)
        picked = "no document is about that: the model as it is"
        if document:
            picked = f"from memory: {document.title}" if asker.recites else f"{document.title} ({document.id})"
        print(printable(f"[{picked}]", keep=""), file=sys.stderr)
    if arguments.compare:
        found = asker.compare(messages, document)
        _show(found, json=arguments.json)
        return found, document

    def show(piece: str) -> None:
        out.write(printable(piece))
        out.flush()

    answer = asker.reply(messages, document=document, name=speaker, on_text=show).text
    out.write("\n")
    return {speaker: answer}, document


def _show(answers: Mapping[str, str], *, json: bool) -> None:
    """Columns on a terminal; elsewhere an answer after the other, named."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=json)
    if console.is_terminal:
        table = Table(expand=True)
        for name in answers:
            table.add_column(Text(printable(name, keep="")))
        table.add_row(*(Text(printable(answer)) for answer in answers.values()))
        console.print(table)
        return
    width = max(map(len, answers)) + 1
    for name, answer in answers.items():
        print(printable(f"{name + ':':{width}} {answer}"), file=sys.stderr if json else sys.stdout)


def serve_flags(parser: argparse.ArgumentParser) -> None:
    adapter_flags(parser)
    parser.add_argument("--host", default="localhost", help="address to listen on [localhost]")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on [8000]")


def serve(arguments: argparse.Namespace) -> Any:
    from selfedit.methods.serve import serve

    code = serve(
        Path(arguments.source),
        host=arguments.host,
        port=arguments.port,
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
        tell=lambda line: print(printable(line, keep=""), file=sys.stderr, flush=True),
    )
    if code:
        raise UserError(f"the server ended with code {code}; what it said stands above")
    return {"code": code}
