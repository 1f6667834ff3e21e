"""python -m d5agent."""

from d5agent.cli import main

main()
