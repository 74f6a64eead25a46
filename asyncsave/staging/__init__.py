"""From a live state to bytes in host memory: the only room that knows tensors on the saving side."""
