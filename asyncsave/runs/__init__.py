"""The checkpoints of one training: where they go, which stay, and how to go on from one."""
