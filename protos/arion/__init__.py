"""Generated protobuf stubs, by version of the protocol."""
