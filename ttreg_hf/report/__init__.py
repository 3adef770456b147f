"""The report of a calibration: one page that needs no server and no network, its figures, and the neuron switch."""
