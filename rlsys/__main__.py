"""`python -m rlsys` is the `rlsys` command."""

import sys

from rlsys.app.cli import main

sys.exit(main())
