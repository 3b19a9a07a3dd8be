"""`python -m everyway.apps.cli`, as torchrun starts it."""

import sys

from everyway.apps.cli import main

sys.exit(main())
