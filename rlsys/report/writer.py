"""Writes `report.html` for a run's folder, also while the run is in progress."""

from __future__ import annotations

import json
from pathlib import Path

from rlsys.common import files
from rlsys.errors import ConfigError
from rlsys.report.examples import Mark
from rlsys.report.gather import Records, gather
from rlsys.report.page import page


def write_report(
    run_directory: str | Path, *, examples: int = 20, truth: Mark | None = None, journal: Records | None = None
) -> Path:
    """Write the page and return its path.

    Args:
        run_directory: folder of a run. `summary.json`, `config.yaml` if it exists, and `journal/` are read.
        examples: number of prompts shown with all their responses.
        truth: splits a response, given with its prompt's id, into segments, each true, false or no claim (`None`); without it
            the responses are shown unmarked.
        journal: read this instead of the run's own journal.

    Raises:
        ConfigError: the folder is not a run, or the run has not begun.
        JournalError: the journal is missing or damaged.
    """
    directory = Path(run_directory)
    summary = directory / "summary.json"
    if not summary.is_file():
        raise ConfigError(f"{directory} has no summary.json: it is no run's folder, or the run has not begun")
    if examples < 0:
        raise ConfigError(f"examples must be at least 0, got {examples}")
    if journal is None:
        from rlsys.journal import Journal

        journal = Journal(directory / "journal", create=False)
    config = directory / "config.yaml"
    text = page(
        directory.resolve().name,
        json.loads(summary.read_text(encoding="utf-8")),
        gather(journal, examples=examples),
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
        mark=truth,
    )
    files.replace(directory / "report.html", text)
    return directory / "report.html"
