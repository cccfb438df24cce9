"""`python -m imprint.cli` is `imprint`."""

import sys

from imprint.cli import main

sys.exit(main())
