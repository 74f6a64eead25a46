"""The benchmarks and the demo: run from the source tree, never installed."""
