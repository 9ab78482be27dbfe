"""Who documents belong to. Pages have one operator until accounts exist; API users name themselves."""

from __future__ import annotations

OPERATOR = "local"  # whoever works with the pages and the command line
