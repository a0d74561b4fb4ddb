"""Thalweg beside what people would run instead, and beside the limit: `python -m benchmarks`."""
