"""A checkpoint as one contiguous file image: where its parts lie, and how it is sealed and read.

Pure bytes: nothing here opens a file, and nothing here imports torch.
"""
