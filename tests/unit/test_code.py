"""Which edits of the code make a model anew, tried on copies of the packages."""

import json
import shutil
from pathlib import Path

import pytest

import actors.engines
import learners
from rlsys import registry
from rlsys.app import code

ROOT = Path(__file__).parents[2]
POLICY = ("rlsys.stages.train", "rlsys.data.scenes_demonstrations", "rlsys.objectives.sft")
JUDGE = (
    *("rlsys.stages.train", "rlsys.data.scenes_critiques", "rlsys.objectives.critique_reward"),
    "actors.engines.vllm",
)
LISTED = ("learners.plan", "learners.group", "rlsys.app.supervised")
"""Some of `code.LEARNING`; all of them would make every case slower and say nothing more."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A copy of the packages, and the hashes of their code."""
    root = tmp_path_factory.mktemp("pristine")
    for package in ("rlsys", "learners", "actors"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root, hashes(root)


def hashes(root):
    def find(module):
        outermost, *inner = module.split(".")
        return code.below(root / outermost, inner) if (root / outermost).is_dir() else None

    return {"policy": code.code_hash(POLICY, LISTED, find=find), "judge": code.code_hash(JUDGE, LISTED, find=find)}


def swap(old, new):
    def edit(text):
        assert old in text
        return text.replace(old, new)

    return edit


def add(more):
    return lambda text: text + more


NEW_OBJECTIVE = """
from rlsys.registry import objective

@objective("mine")
class Mine:
    pass
"""
EDITS = [
    # file, edit, models that are made anew
    ("rlsys/objectives/mine.py", add(NEW_OBJECTIVE), ""),
    ("rlsys/objectives/dpo.py", swap("beta: float = 0.1", "beta: float = 0.2"), ""),
    ("rlsys/objectives/inputs.py", add("\nclass MoreInputs:\n    pass\n"), ""),
    ("rlsys/objectives/sft.py", swap("Imitation", "Copying"), ""),
    ("rlsys/objectives/sft.py", swap("import annotations\n", "import annotations\n\n# It is simple.\n"), ""),
    ("learners/plan.py", swap('"""Highest learning rate."""', '"""The highest rate."""'), ""),
    ("learners/plan.py", swap('"""Learning rate of optimizer step', '"""Rate of step'), ""),
    ("rlsys/worlds/scenes/language.py", add("\n\ndef unused():\n    return 1\n"), ""),
    ("rlsys/worlds/scenes/policy.py", swap("_EMBEDDING_STD = 0.7", "_EMBEDDING_STD = 0.8"), ""),  # of stage `random`
    ("rlsys/report/page.py", add("\nMORE = 1\n"), ""),
    ("rlsys/data/jsonl.py", add("\nMORE = 1\n"), ""),
    ("rlsys/records/rounds.py", add("\nMORE = 1\n"), ""),
    ("learners/state.py", add("\nMORE = 1\n"), ""),
    ("actors/roles.py", add("\nMORE = 1\n"), ""),
    ("rlsys/objectives/sft.py", swap("-inputs.responses.logps_B if", "-2 * inputs.responses.logps_B if"), "policy"),
    ("rlsys/objectives/critique_reward.py", swap("c0: float = 0.01", "c0: float = 0.02"), "judge"),
    ("rlsys/objectives/inputs.py", swap("-self.logps_B / self.num_tokens_B", "-self.logps_B"), "policy judge"),
    ("rlsys/data/scenes_demonstrations.py", swap("start=index", "start=index + 1"), "policy"),
    ("rlsys/data/scenes_critiques.py", swap('split="annotated"', 'split="train"'), "judge"),
    ("rlsys/worlds/scenes/annotate.py", swap("faults += len(missing)", "faults += 1"), "judge"),
    ("rlsys/worlds/scenes/source.py", swap("PARTNER_RATE = 0.45", "PARTNER_RATE = 0.5"), "policy"),
    ("rlsys/worlds/scenes/world.py", swap("CELL_PIXELS = ", "CELL_PIXELS = 2 * "), "policy judge"),
    ("rlsys/seeding.py", swap("0x3FFFFFFF", "0x1FFFFFFF"), "policy judge"),
    ("rlsys/stages/recipe.py", swap("* self.epochs", "* self.epochs + 1"), "policy judge"),
    ("learners/plan.py", swap("math.cos(math.pi * passed)", "math.cos(passed)"), "policy judge"),
    ("rlsys/app/supervised.py", swap("RESPONDING_ROUND = -2", "RESPONDING_ROUND = -3"), "policy judge"),
    ("actors/engines/vllm_records.py", add("\nFORBIDDEN_BIAS = 0\n"), "judge"),
]


@pytest.mark.parametrize(("file", "edit", "anew"), EDITS, ids=[f"{file}-{n}" for n, (file, *_) in enumerate(EDITS)])
def test_models_are_made_anew_only_for_code_that_decides_them(pristine, file, edit, anew):
    root, before = pristine
    path = root / file
    kept = path.read_text() if path.exists() else None
    path.write_text(edit(kept or ""))
    try:
        after = hashes(root)
    finally:
        path.unlink() if kept is None else path.write_text(kept)
    assert [name for name in before if before[name] != after[name]] == anew.split()


def test_layout_and_texts_that_stand_alone_do_not_count():
    import ast

    one = 'def f(a):\n    """Doc."""\n    # why\n    return {"key":\n        a}\n'
    other = 'def f(a): return {"key": a}'
    assert code.essence(ast.parse(one)) == code.essence(ast.parse(other))
    assert code.essence(ast.parse(one)) != code.essence(ast.parse(other.replace("key", "name")))


def test_definitions_are_followed_through_the_ways_of_importing_them(tmp_path):
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("from mine.deep import passed_on\n")
    (package / "deep.py").write_text("def passed_on(): return 1\ndef other(): return 2\n")
    (package / "lazy.py").write_text(
        "LIMIT = 3\nif LIMIT: LIMIT += 1\ndef late(): return LIMIT\ndef other(): return 2\n"
    )
    (package / "plugin.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from mine import lazy, passed_on\n"
        "from .deep import passed_on as again\n"
        "if TYPE_CHECKING:\n    from mine.types import Kind\n"
        "def run():\n    from mine.lazy import late\n    return late() + again() + passed_on()\n"
    )

    def find(module):
        outermost, *inner = module.split(".")
        return code.below(tmp_path / outermost, inner)

    used = code.Used(find)
    used.add("mine.plugin")
    assert sorted(used.found) == [
        ("mine.deep", "passed_on"),
        ("mine.lazy", "LIMIT"),
        ("mine.lazy", "late"),
        ("mine.lazy", "statement 0"),
        ("mine.plugin", ""),
    ]
    with pytest.raises(ValueError, match=r"no module 'mine\.absent'"):
        used.add("mine.absent")


def test_every_module_of_the_learner_is_said_to_decide_weights_or_not():
    root = Path(learners.__file__).parent
    there = {".".join(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")}
    learning = {name.removeprefix("learners.") for name in code.LEARNING if name.startswith("learners.")}
    others = {*code.NOT_LEARNING, *code.OF_A_KIND}
    assert learning.isdisjoint(others) and len(others) == len(code.NOT_LEARNING) + len(code.OF_A_KIND)
    assert learning | others == there


def test_all_that_is_listed_and_every_plug_in_is_found():
    registry.discover()
    actors.engines.discover()
    for module in (*code.LEARNING, *code.RESPONDING):
        assert code.installed(module) is not None, module
    used = code.Used(code.installed)
    for group in (registry.stage, registry.data, registry.objective, actors.engines.engine):
        for plugin in group.values():
            used.add(plugin.__module__)
    assert ("rlsys.objectives.inputs", "Sequences") in used.found
    assert not any(module.startswith(("rlsys.records", "rlsys.wire", "rlsys.app")) for module, _ in used.found)
    json.dumps(sorted(used.found))
