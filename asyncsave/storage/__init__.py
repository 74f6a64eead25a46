"""Files: the only place that opens them, and the only place where a commit is made.

There is no ``rename`` in what this room offers: putting a file makes it visible whole or not at all.
Only bytes are known here; torch is not.
"""
