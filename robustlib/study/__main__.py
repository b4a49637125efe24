"""`python -m robustlib.study`: see `robustlib.study.runner`."""

import sys

from robustlib.study import main

sys.exit(main())
