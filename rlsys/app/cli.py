"""The `rlsys` command: its first argument names a module of this package, whose `main` gets the other arguments."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "align": "run online alignment rounds",
    "train": "train a model on examples of your own",
    "evaluate": "measure a policy on held-out prompts",
    "report": "write a run's report.html again",
    "doctor": "check the installation piece by piece",
    "bench": "measure where the time goes",
}


def usage() -> str:
    """The help text."""
    lines = ["usage: rlsys COMMAND [key=value ...] [--cfg job] [--help]", ""]
    lines += [f"  {name:9} {what}" for name, what in COMMANDS.items()]
    lines += ["", "for example: rlsys align preset=scenes schedule.rounds=3"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the process's exit status (2: wrong usage or configuration)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    command, *rest = argv
    if command not in COMMANDS:
        print(f"rlsys: no command {command!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"rlsys.app.{command}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
