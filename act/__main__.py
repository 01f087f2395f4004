"""`python -m act` is the command `vitcompress`."""

from __future__ import annotations

import sys

from act.cli.main import main

sys.exit(main())
