"""Evaluation: metrics against hand-worked cases and libraries, and what planted models must show."""
