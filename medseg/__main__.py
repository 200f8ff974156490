"""`python -m medseg` is the `medseg` command; `torchrun -m medseg train` needs it."""

from medseg.cli import main

main()
