"""`python -m jaxgrad` is `jaxgrad`."""

from jaxgrad.cli import main

main()
