"""`python -m robustlib`: the command `robustlib`, see `robustlib.cli`."""

import sys

from robustlib.cli import main

sys.exit(main())
