"""The command `vitcompress`: parses the verb, runs it, and turns every failure into one kind of message.

Exit codes: 0 done and goals met, 1 something went wrong (a run can be continued), 2 bad input, 3 goals missed or a
verification that does not hold, 130 interrupted (Ctrl-C) and 143 terminated (SIGTERM), where a run can be continued.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from act import __version__
from act.cli import (
    analyze,
    bench,
    compare,
    completion,
    doctor,
    engine,
    eval,
    export,
    nodes,
    plan,
    recipes,
    reproduce,
    run,
    search,
    sensitivity,
    verify,
)
from act.errors import ActError, InputError
from act.run.spin import sleep_early
from act.run.stop import Stopped, sigterm_raises
from act.steering import harmless
from act.verbosity import set_quiet

# Modules here import nothing heavy, so that --help answers at once; each verb imports what it needs when it runs.
VERBS = {
    "run": run,
    "plan": plan,
    "search": search,
    "nodes": nodes,
    "analyze": analyze,
    "sensitivity": sensitivity,
    "recipes": recipes,
    "reproduce": reproduce,
    "eval": eval,
    "bench": bench,
    "compare": compare,
    "export": export,
    "engine": engine,
    "verify": verify,
    "doctor": doctor,
    "completion": completion,
}
PROGRAM = "vitcompress"
FLAGS = {  # of every verb
    "debug": "show the traceback of an error",
    "quiet": "no progress and no remarks: only warnings, errors and the result",
}
_EPILOG = """\
examples:
  vitcompress run quickstart                       the embedded example, from YAML to a verified ONNX file
  vitcompress plan quickstart                      what it would do, without doing it
  vitcompress run recipe.yaml data.train=photos    your own recipe, with one value changed

`vitcompress VERB --help` has the options and examples of a verb.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, as every other error is said."""

    def error(self, message: str) -> NoReturn:
        self.exit(InputError.exit_code, f"{PROGRAM}: error: {message}; see: {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all verbs."""
    parser = _Parser(
        prog=PROGRAM,
        description="Prune, distil and quantise an unmodified vision transformer from one YAML, to a verified file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    for name, text in FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, module in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(verb)
        for flag, text in FLAGS.items():
            verb.add_argument(f"--{flag}", action="store_true", default=argparse.SUPPRESS, help=text)
        verb.set_defaults(command=module.command)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line; a verb's list of words (key=value, files) may go on after options."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    for flag in [word for word in rest if word in [f"--{name}" for name in FLAGS]]:  # after an action of a verb
        rest.remove(flag)
        setattr(args, flag.removeprefix("--"), True)
    # argparse gives a list of words only those before the first option; the rest come back as unknown.
    name = next((name for name in ("overrides", "files") if hasattr(args, name)), None)
    words = [word for word in rest if name is not None and not word.startswith("-")]
    unknown = [word for word in rest if word not in words]
    if unknown:
        parser.prog = f"{PROGRAM} {args.verb}"  # whose --help has what is known
        parser.error(f"{args.verb}: unknown: {' '.join(unknown)}")
    if name is not None:
        setattr(args, name, [*getattr(args, name), *words])
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; only argparse's own errors and --help raise SystemExit."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse(argv)
    set_quiet(args.quiet)
    sleep_early()
    try:
        with sigterm_raises():
            return int(args.command(args))
    except InputError as error:
        return _failed(args.debug, error.exit_code, error.problems)
    except ActError as error:
        return _failed(args.debug, error.exit_code, str(error).splitlines())
    except KeyboardInterrupt as error:
        again = f"; continue with: {PROGRAM} {shlex.join(argv)}" if args.verb in ("run", "search") else ""
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        return _failed(args.debug, stopped.exit_code, [f"{stopped}{again}"])
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # whatever it is, a user gets one line; --debug has the rest
        if "torch" in sys.modules:  # before that nothing ran that could have met a fault
            from act.run.faults import explain

            if (reason := explain(error)) is not None:
                return _failed(args.debug, 1, [reason])
        text = " ".join(str(error).split())[:300]
        hint = "" if args.debug else "; this should not happen, run again with --debug for the traceback"
        return _failed(args.debug, 1, [f"{type(error).__name__}: {text}{hint}"])


def _failed(debug: bool, code: int, lines: Sequence[str]) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    for line in lines:
        print(f"{PROGRAM}: error: {harmless(line)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
