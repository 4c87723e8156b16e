"""`python -m merge3.cli` is `merge3`."""

import sys

from merge3.cli import main

sys.exit(main())
