"""The command line does without torch."""

import subprocess
import sys

from rlsys.common.lazy import Lazy


def test_a_configuration_is_composed_without_torch():
    program = (
        "import sys\n"
        "from rlsys.app import align, config\n"
        "config.load(['preset=scenes'])\n"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_a_lazy_module_has_what_the_module_has():
    assert Lazy("os.path").join("a", "b") == "a/b"
