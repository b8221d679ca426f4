"""``python -m nextbest``."""

from nextbest.cli import main

main()
