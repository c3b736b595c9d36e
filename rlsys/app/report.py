"""`rlsys report run=<folder>`: write a run's report.html again, or while the run is in progress."""

from __future__ import annotations

import sys
from pathlib import Path

from rlsys.app.config import check_format, guarded
from rlsys.errors import ConfigError
from rlsys.report.writer import write_report
from rlsys.worlds.scenes.source import make_prompt, read_id, scene_of
from rlsys.worlds.scenes.truth import check, parse


def write(directory: Path, *, examples: int) -> Path:
    """Write the report page of a run. Claims in responses are marked where the prompts come from the scenes world."""
    return write_report(directory, examples=examples, truth=marked_claims)


def marked_claims(prompt_id: str, answer: str) -> list[tuple[str, bool | None]]:
    """The sentences of a response, each with `True` or `False`; `None` where there is no ground truth or the sentence makes no
    claim.
    """
    try:
        prompt = make_prompt(*read_id(prompt_id))
    except ValueError:  # a prompt from another source
        return [(answer, None)]
    scene = scene_of(prompt)
    return [
        (sentence.text + " .", all(check(claim, scene) for claim in sentence.claims) if sentence.claims else None)
        for sentence in parse(answer, prompt.question).sentences
    ]


def main(words: list[str]) -> int:
    """Write the page and print its path."""

    def body() -> int:
        options = dict(override.partition("=")[::2] for override in words)
        unknown = set(options) - {"run", "examples"}
        if unknown or "run" not in options:
            raise ConfigError(f"report takes run=<folder> and examples=<number>, got {' '.join(words) or 'nothing'}")
        folder = Path(options["run"])
        directory = folder if (folder / "config.yaml").exists() else Path("runs") / folder
        if not (directory / "config.yaml").exists():
            raise ConfigError(f"run: no run in {directory}")
        check_format(directory, "run")
        examples = options.get("examples", "20")
        if not examples.isdecimal():
            raise ConfigError(f"examples must be a whole number of at least 0, got {examples!r}")
        print(write(directory, examples=int(examples)))
        return 0

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
