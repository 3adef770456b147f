"""Tests of finding register neurons."""
