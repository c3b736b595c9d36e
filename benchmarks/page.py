"""`benchmarks/README.md` from the JSON files in `benchmarks/results`, and the table of the programs.

python -m benchmarks.page
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import MIN_REPEATS, RESULTS, short

PAGE = RESULTS.parent / "README.md"


@dataclass(frozen=True, kw_only=True)
class Program:
    """A module of this folder, and what it needs."""

    question: str
    """What a user asks, and the program answers."""
    repeats: int = MIN_REPEATS
    """Turns that count. Short turns are many: within a minute a machine's speed changes more than the sides differ."""
    cores: int = 1
    """Fewest cores: both sides, or both ends of a transfer, may need cores of their own."""
    rival: bool = False
    """Whether the other side is TRL."""
    vllm: bool = True
    """Whether it needs vLLM; an environment whose torch sees a GPU has the vLLM for GPUs."""
    on_gpu: bool = True
    """Whether it has cases for a GPU."""


PROGRAMS = {
    "learner": Program(
        question="Pairs per second and memory of a learner's whole steps, against TRL's DPOTrainer",
        cores=2,
        rival=True,
        vllm=False,
    ),
    "round": Program(
        question="Pairs per second of whole online rounds, against TRL's OnlineDPOTrainer", cores=2, rival=True
    ),
    "rollout": Program(
        question="Tokens per second through the rollout actors, end to end, against vLLM alone", repeats=10
    ),
    "judge": Program(question="Critiques with their scores per second: one pass of the judge, against two", repeats=10),
    "weight_sync": Program(
        question="Seconds of a weight transfer against a bare copy of the bytes, and the proof's share of a round",
        cores=2,
    ),
    "overlap": Program(question="Seconds of a round of the preset, against its slowest stage alone", cores=2),
    "scaling": Program(
        question="Time and memory of rounds of 100, 1 000 and 10 000 prompts, around scripted engines",
        vllm=False,
        on_gpu=False,
    ),
    "startup": Program(question="Seconds from the command to the first responses"),
}
"""In the order in which they run and stand on the page."""

HEAD = """\
# Benchmarks

Made by `python -m benchmarks.page` from the files in `results/`, which also hold what was checked; do not edit.

```
make bench                                   # all that fit this machine, about 100 minutes on two cores, then this page
make bench ARGS="round judge"                # some; --repeats 1 for a first look, --only TEXT for some of the cases
python -m benchmarks --device gpu            # the same programs on a machine with one GPU
```

- Two sides are measured in turn in one run, and the figure is their ratio: the speed of a machine drifts, a ratio less so.
  Whoever waits is stopped. "1.2 (1.1 to 1.3)" is the median over the turns, the smallest and the largest.
- Nothing is written unless both sides did the same work. Both have the first two cores of the machine, or its one GPU.
- Cores multiply in float32, a GPU in bfloat16, on both sides.
- TRL runs with the fastest of its settings that were tried before, compiled where that is faster.
- A bound stands in the place of a target that no arrangement of the same work could reach: what the stages of the same run
  computed, without a second of waiting. It moves when a stage gets cheaper.
- `python -m benchmarks real_model` is not written yet: rounds of a real checkpoint.
"""


def file_name(program: str, device: str) -> str:
    """Name of a program's file of results, without ending."""
    return program if device == "cpu" else f"{device}_{program}"


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    met = [row["met"] for one in found.values() for row in one["rows"] if row["met"] is not None]
    lines = [HEAD, f"{sum(met)} of {len(met)} targets met."]
    for device in ("cpu", "gpu"):
        names = [name for name in PROGRAMS if device == "cpu" or PROGRAMS[name].on_gpu]
        missing = [name for name in names if file_name(name, device) not in found]
        lines += ["", "# On a GPU"] if device == "gpu" else []
        for name in names:
            lines += [] if name in missing else ["", *_section(name, found[file_name(name, device)], device)]
        lines += ["", f"Not measured yet: {', '.join(missing)}."] if missing else []
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, one: dict[str, Any], device: str) -> list[str]:
    words = f"python -m benchmarks {name}" + ("" if device == "cpu" else f" --device {device}")
    lines = [f"## {name}", "", f"{PROGRAMS[name].question}. `{words}`", ""]
    older = [f"- {one['older']}"] if "older" in one else []
    return [*lines, *_table(one["rows"]), "", *older, *_notes(one["rows"]), _measured(one["measured"], one["repeats"])]


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| case | ours | other side | ours / other | target or bound | |", "|---|---|---|---|---|---|"]
    for row in rows:
        other = "" if row["other"] is None else f"{row['other_name']}: {_spread(row['other'])}"
        ratio = "" if row["ratio"] is None else _spread(row["ratio"])
        ours = f"{_spread(row['ours'])} {row['unit']}".strip()
        cells = [row["case"], ours, other, ratio, *_aim(row)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _aim(row: dict[str, Any]) -> tuple[str, str]:
    """What a row should reach, and whether it does."""
    if row["bound"] is not None:
        return f"bound {short(row['bound']['ratio'])}", f"{row['ratio']['median'] / row['bound']['ratio']:.0%} of it"
    if row["target"] is None:
        return "", ""
    low, high = row["target"]["at_least"], row["target"]["at_most"]
    return f"≥ {low:g}" if low is not None else f"≤ {high:g}", "met" if row["met"] else "**missed**"


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What must be known to read the rows; a note of several rows once."""
    cases: dict[str, list[str]] = {}
    for row in rows:
        bound = "" if row["bound"] is None else f"Bound: {row['bound']['why']}."
        for note in filter(None, (bound, row["note"])):
            cases.setdefault(note, []).append(row["case"])
    told = {note: "" if len(named) == len(rows) else f"{'; '.join(named)}: " for note, named in cases.items()}
    return [*(f"- {which}{note}" for note, which in told.items()), *([""] if told else [])]


def _measured(measured: dict[str, Any], repeats: int) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    gpus = ", ".join(measured["gpus"]) or "no GPU"
    return (
        f"{repeats} turns on {measured['when'][:10]} at commit {measured['commit']}, {measured['cores']} cores of "
        f"{measured['processor']}, {measured['memory_gib']:g} GiB, {gpus}; Python {measured['python']}, {versions}."
    )


def _spread(spread: dict[str, float]) -> str:
    return f"{short(spread['median'])} ({short(spread['low'])} to {short(spread['high'])})"


def main() -> None:
    PAGE.write_text(page())
    print(PAGE)


if __name__ == "__main__":
    main()
