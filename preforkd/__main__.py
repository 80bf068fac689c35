"""``python -m preforkd``: the same as the command ``preforkd``."""

import sys

from preforkd.cli import main

sys.exit(main())
