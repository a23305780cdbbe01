"""Training engines: the protocol, the registry, one folder each."""
