"""``python -m asyncsave``: the command line."""

from asyncsave.cli.entry import main

if __name__ == "__main__":
    main()
