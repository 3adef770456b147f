"""The command line, run in this process wherever a test allows it."""
