"""`ferdist selftest`: what this machine has, whether ferdist computes right on it, and how fast it is."""
