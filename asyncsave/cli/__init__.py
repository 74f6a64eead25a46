"""The command line: ``asyncsave bench``, ``inspect``, ``verify`` and the rest, on the public API."""
