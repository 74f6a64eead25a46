"""What is in a checkpoint, without loading it: the zip's directory and the pickle's opcodes, never executed."""
