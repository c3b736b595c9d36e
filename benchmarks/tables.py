"""`benchmarks/README.md` from the JSON files in `benchmarks/results`.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Target

PAGE = RESULTS.parent / "README.md"
NAMES = ("learner", "rollout", "critic", "weight_sync", "wire", "round", "overlap", "scaling", "startup")
"""All benchmarks, in the order in which they run and stand on the page."""


@dataclass(frozen=True, kw_only=True)
class OnGpu:
    """A program that needs a GPU."""

    measures: str
    target: Target | None = None


ON_GPU = {
    "gpu_learner": OnGpu(
        measures="tokens per second of full fine-tuning, share of the bfloat16 matrix rate; TRL beside it",
        target=Target(at_least=0.45),
    ),
    "gpu_rollout": OnGpu(
        measures="tokens per second through the actors, against bare vLLM", target=Target(at_least=0.97)
    ),
    "gpu_sync": OnGpu(
        measures="bytes per second of a weight update over ipc, against a copy on the device",
        target=Target(at_least=0.5),
    ),
    "gpu_nccl": OnGpu(measures="an NCCL broadcast between two processes on the one GPU"),
    "gpu_gap": OnGpu(measures="distribution of the log-probability gap between engine and learner in bfloat16"),
    "gpu_round": OnGpu(measures="whole online rounds, against TRL's OnlineDPOTrainer", target=Target(at_least=5.0)),
    "gpu_placement": OnGpu(measures="a round's stages at once on the GPU, against one after the other"),
}
"""In the order in which they run; the programs take their targets from here."""

_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?]) (?=[A-Z])")

HEAD = """\
# Benchmarks

Made by `python -m benchmarks.tables` from the files in `results/`; do not edit.

Where there is another side, the two are measured in turn in one run, and the figure is their ratio: machines drift,
ratios less so. "1.2 (1.1 to 1.3)" is the median over the turns, the smallest and the largest. Nothing is written down
unless both sides did the same work; where they do not fit a GPU at once and come one after the other, the row says so.
A row without another side has what was measured on that machine.

## How to run

```
make bench                                # all that fit this machine, then this page
make bench ARGS="weight_sync wire"        # some of them
python -m benchmarks.weight_sync          # one; --repeats 1 for a first look, which is not written down
python -m benchmarks.tables               # only this page, from the files that are there
python -m benchmarks.gpu                  # on a machine with a GPU, all that need one; --tiny tries the programs anywhere
```

The models of the scenes world are made once and cached (`rlsys align preset=scenes` makes them too).
"""


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    here = {name: found[name] for name in NAMES if name in found}
    others = {name: one for name, one in found.items() if name not in here and name not in ON_GPU}
    on_gpu = {name: found[name] for name in ON_GPU if name in found}
    all_here = {**here, **others}
    lines = [HEAD, "## Targets", "", *_summary(all_here | on_gpu), *_origins(all_here)]
    for name, one in all_here.items():
        lines += ["", *_section(name, one)]
    missing = [name for name in NAMES if name not in here]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    lines += ["", "## On a GPU", "", *_gpu(on_gpu)]
    return "\n".join(lines).rstrip() + "\n"


def _summary(results: dict[str, Any]) -> list[str]:
    rows = [(name, row) for name, one in results.items() for row in one["rows"] if row["met"] is not None]
    if not rows:
        return ["No row with a target has been measured."]
    met = sum(row["met"] for _, row in rows)
    general = {name: _general(one["rows"]) for name, one in results.items()}
    missed = [f"- {name}: {row['case']}: {_verdict(row, general[name])}" for name, row in rows if not row["met"]]
    return [f"{met} of {len(rows)} met." + (" Missed:" if missed else ""), *([""] if missed else []), *missed]


def _origins(results: dict[str, Any]) -> list[str]:
    """That the page is not of one run, if it is not."""
    commits: dict[str, list[str]] = {}
    for name, one in results.items():
        commits.setdefault(f"{one['measured']['commit']} on {one['measured']['processor']}", []).append(name)
    if len(commits) < 2:
        return []
    runs = "; ".join(f"{', '.join(names)} at {commit}" for commit, names in commits.items())
    return ["", f"Not all from one run: {runs}."]


def _section(name: str, one: dict[str, Any], level: str = "##") -> list[str]:
    lines = [f"{level} {name}", "", f"{one['title']}. `python -m benchmarks.{name}`, {one['repeats']} turns.", ""]
    return [*lines, *_table(one["rows"]), "", *_notes(one["rows"]), f"Measured {_environment(one['measured'])}."]


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| case | ours | other side | ours / other | target | |", "|---|---|---|---|---|---|"]
    for row in rows:
        other = "" if row["other"] is None else f"{row['other_name']}: {_spread(row['other'])}"
        ratio = "" if row["ratio"] is None else _spread(row["ratio"])
        ours = f"{_spread(row['ours'])} {row['unit']}".strip()
        verdict = {None: "", True: "met", False: "**missed**"}[row["met"]]
        cells = [row["case"], ours, other, ratio, _target(row["target"]), verdict]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is to be said of each row, then, once, what is to be said of most of them."""
    general, lines = _general(rows), []
    for row in rows:
        extra = ", ".join(f"{name} {_number(value)}" for name, value in row["extra"].items())
        texts = (_own(row, general), row["checked"] and f"Checked: {row['checked']}", extra)
        said = [_sentence(text) for text in texts if text]
        if said:
            lines.append(f"- {row['case']}: {' '.join(said)}")
    by_rows: dict[str, list[str]] = {}
    for sentence in general:
        without = "; ".join(row["case"] for row in rows if sentence not in _sentences(row))
        by_rows.setdefault(f"All rows but {without}" if without else "All rows", []).append(_sentence(sentence))
    lines += [f"- {which}: {' '.join(said)}" for which, said in by_rows.items()]
    return [*lines, ""] if lines else []


def _general(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences that stand in several notes, and in half of them or more."""
    noted = [row for row in rows if row["note"]]
    found = Counter(sentence for row in noted for sentence in dict.fromkeys(_sentences(row)))
    return [sentence for sentence, times in found.items() if times > 1 and 2 * times >= len(noted)]


def _own(row: dict[str, Any], general: Sequence[str]) -> str:
    """A row's note without what is said of most."""
    return " ".join(sentence for sentence in _sentences(row) if sentence not in general)


def _sentences(row: dict[str, Any]) -> list[str]:
    return _BETWEEN_SENTENCES.split(row["note"])


def _gpu(results: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    missing = [name for name in ON_GPU if name not in results]
    if missing:
        lines += ["| program | measures | target | |", "|---|---|---|---|"]
        for name in missing:
            program = ON_GPU[name]
            lines.append(f"| `benchmarks.{name}` | {program.measures} | {program.target or ''} | not measured |")
        lines.append("")
    for name, one in results.items():
        lines += [*_section(name, one, "###"), ""]
    return lines


def _environment(measured: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    gpus = ", ".join(measured["gpus"]) or "no GPU"
    return (
        f"{measured['when'][:10]} at {measured['commit']} on {measured['cores']} cores of {measured['processor']}, "
        f"{measured['memory_gib']:g} GiB, {gpus}; Python {measured['python']}, {versions}"
    )


def _verdict(row: dict[str, Any], general: Sequence[str]) -> str:
    reached = row["ratio"] or row["ours"]
    return f"{_number(reached['median'])}, target {_target(row['target'])}. {_own(row, general)}".strip()


def _target(target: dict[str, Any] | None) -> str:
    if target is None:
        return ""
    if target["at_least"] is not None:
        return f"≥ {target['at_least']:g}"
    return f"≤ {target['at_most']:g}"


def _spread(spread: dict[str, float]) -> str:
    return f"{_number(spread['median'])} ({_number(spread['low'])} to {_number(spread['high'])})"


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def main() -> None:
    PAGE.write_text(page())
    print(PAGE)


if __name__ == "__main__":
    main()
