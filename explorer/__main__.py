"""`python -m explorer`: the command line, where no script of it is on the path."""

from explorer.cli import main

if __name__ == "__main__":
    main()
