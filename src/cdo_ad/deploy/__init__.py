"""From a run to the line PC: verified exports, int8, benchmarks."""
