"""`python -m midflight` is `midflight`."""

from .cli import main

main()
