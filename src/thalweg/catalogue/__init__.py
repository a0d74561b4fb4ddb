"""Data, models and test functions with known answers, as plain functions."""
