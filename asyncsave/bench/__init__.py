"""Measure what saving costs a training, and decide by it. The command line and the benchmarks stand on this."""
