"""From a patched model to a repository that anyone loads: checkpoint folder, card, checks, push, load, new code."""
