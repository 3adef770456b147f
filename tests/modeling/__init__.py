"""Laws of the suitcase: `laws` are functions of a modeling package, so that its mutants can be judged by them too."""
