"""The neuron switch on one's own pictures: a page of its own, in a notebook, and as a static Space."""
