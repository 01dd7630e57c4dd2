"""`python -m arion`, which is also how torchrun starts the processes of a command."""

from arion.cli import main

main()
