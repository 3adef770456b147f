"""Tests of checkpoint folders, and of publishing them on the stand-in for the Hub."""
