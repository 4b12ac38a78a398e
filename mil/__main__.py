"""`python -m mil …` is `promptmil …`, for places where only the interpreter's path is known, such as a batch job."""

import sys

from mil.cli import main

sys.exit(main())
