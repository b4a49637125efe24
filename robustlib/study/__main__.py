"""`python -m robustlib.study`: see `robustlib.study.runner`."""

import sys

from robustlib.study.runner import main

sys.exit(main())
