"""`ferdist bench`: each stage beside a peer and beside its limit. Start at ``ferdist.bench.run``."""
