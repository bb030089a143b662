"""The command line: parses, calls a method, prints.

A user's mistake becomes one line on standard error and exit code 2; anything else keeps its traceback.  Nothing heavy
is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import os
import sys
from collections.abc import Sequence

from selfedit.cli import interrupt
from selfedit.errors import UserError
from selfedit.text import one_line


class _OneLine(logging.Formatter):
    """A record's message on one line; a traceback below it stays as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, by default the command line's; returns the exit code."""
    try:
        if argv is None:
            interrupt.watch_interrupts()
            for stream in (sys.stdin, sys.stdout):
                if isinstance(stream, io.TextIOWrapper):  # a terminal may have no sign for "–", nor speak UTF-8
                    stream.reconfigure(errors="replace")
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLine("%(message)s"))
        logging.basicConfig(handlers=[handler])
        logging.getLogger("selfedit").setLevel(logging.INFO)
        arguments = _parse(list(sys.argv[1:] if argv is None else argv))
        if arguments is None:
            return 0
        # Commands that make a run, and only those, have --plan.
        interrupt.resumable = getattr(arguments, "plan", None) is False
        # Methods show progress of their own; the bars of the libraries below would only tear it apart.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        result = arguments.run(arguments)
        if arguments.json:
            print(json.dumps(result, indent=2, default=str))
        return 0
    except UserError as error:
        print(one_line(f"selfedit: {error}"), file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has gone (`| head`); let the interpreter's last flush go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "a disk"
        print(
            one_line(f"selfedit: {where}: the disk is full; make room and give the same command again"), file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        interrupt.told.set()
        print(interrupt.message(), file=sys.stderr)
        return interrupt.EXIT_CODE


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """All commands, with the flags of the chosen one alone: settings classes cost time to import."""
    from selfedit.cli import commands
    from selfedit.cli.flags import Parser

    parser = Parser(
        prog="selfedit",
        description="Language models that learn documents by fine-tuning on notes they write themselves.",
        epilog="An edit is a text that is written from a document, to be learned; an editor writes it. A fit trains one"
        " LoRA adapter on it, by a recipe. An exam asks the adapter about the document, which it does not see."
        " `selfedit COMMAND --help` shows a command's settings.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    subparsers = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for name, command in commands.COMMANDS.items():
        sub = subparsers.add_parser(name, help=command.help, description=command.help)
        sub.set_defaults(run=command.run)
        if name == chosen:
            command.add_flags(sub)
            sub.add_argument(
                "--json", action="store_true", help="print the result as one JSON object on standard output"
            )
    return parser


def _parse(argv: list[str]) -> argparse.Namespace | None:
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = _parser(chosen)
    arguments = parser.parse_args(argv)
    if arguments.version:
        from importlib.metadata import version

        print(f"selfedit {version('selfedit')}")
        return None
    if chosen is None:
        parser.print_help()
        return None
    return arguments


if __name__ == "__main__":
    sys.exit(main())
