"""What the documents say is true: the worked example runs, links lead somewhere, the promised sizes hold."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_way_of_a_prompt_and_of_a_weight_are_lists_of_files_that_call_each_other():
    """Every file is there, and imports or names the next one's module, a class or a method of it."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    ways = re.findall(r"### The way of a (?:prompt|weight)\n(.*?)(?=\n##)", text, flags=re.S)
    assert len(ways) == 2
    for way in ways:
        steps = re.findall(r"^\d+\. `([\w/.]+\.py)` `(\w+)`", way, flags=re.M)
        assert len(steps) >= 8
        for path, name in steps:
            source = (ROOT / path).read_text()
            assert re.search(rf"^\s*(class|def) {name}\b", source, flags=re.M), f"{path} has no {name}"


def test_links_between_documents_lead_somewhere():
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (ROOT / target).exists(), f"{document.name} links to {target}"


def test_readme_and_architecture_keep_their_size():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 130


def test_no_source_file_is_longer_than_a_few_screens():
    sources = [
        path for top in ("rlsys", "actors", "learners", "configs", "benchmarks") for path in (ROOT / top).rglob("*.py")
    ]
    too_long = {str(path.relative_to(ROOT)): n for path in sources if (n := len(path.read_text().splitlines())) > 320}
    assert too_long == {}
    assert len((ROOT / "rlsys" / "rounds.py").read_text().splitlines()) <= 80
