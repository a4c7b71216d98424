"""`python -m kernelpool` is the command `kernelpool`."""

from kernelpool.cli import main

main()
