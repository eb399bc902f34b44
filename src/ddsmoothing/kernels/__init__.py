"""What runs on a device: the integers of ``noise``, drawn there bit for bit, and the one rounding to floats."""
