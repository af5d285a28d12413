"""A conformance kit: what a foreign agent, voter or codec must do on the bus, tried one by one, with a verdict a line."""
