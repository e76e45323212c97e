"""`python -m clients.cli` is `kinsight` with this very interpreter; the demo starts its server that way."""

from clients.cli import main

main()
