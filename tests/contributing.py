"""The files that CONTRIBUTING.md shows, as a person would lay them down."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = ("second_opinion", "plain_reinforce", "approved")


def write_examples(folder: Path) -> dict[str, str]:
    """Write them into `folder`; the environment with which rlsys finds them."""
    blocks = re.findall(
        r"```(?:python|yaml)\n# ([\w/]+\.(?:py|yaml))\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S
    )
    assert [name for name, _ in blocks] == [*(f"{module}.py" for module in MODULES), "method/opinions.yaml"]
    for name, text in blocks:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"RLSYS_PLUGINS": ",".join(MODULES), "RLSYS_CONFIGS": str(folder), "PYTHONPATH": str(folder)}
