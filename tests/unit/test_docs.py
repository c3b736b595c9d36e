"""What the documents say is true: the worked example runs, links lead somewhere, the promised sizes hold."""

import re
from pathlib import Path

from rlsys import registry
from tests.fakes import make_scored_group

ROOT = Path(__file__).parents[2]


def test_the_worked_example_of_contributing_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S)
    try:
        exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "worked_example"})
        build = registry.examples.make("closest", scale_w=0.0)
        scored = make_scored_group(texts=["a", "b", "c"], scores=[1.0, 4.0, 3.5])
        (pair,) = build(scored)
        assert (pair.chosen.text, pair.rejected.text, pair.margin, pair.beta_scale) == ("b", "c", 0.5, 1.0)
        assert registry.examples.make("closest", min_margin=0.6)(scored)[0].margin == 2.5
        assert build(make_scored_group(texts=["a", "b"], scores=[1.0, 1.0])) == []
    finally:
        registry.examples.pop("closest", None)


def test_links_between_documents_lead_somewhere():
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (ROOT / target).exists(), f"{document.name} links to {target}"


def test_readme_and_architecture_keep_their_size():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 70
