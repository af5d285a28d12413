"""The int8 network as plain data: layers, storage, parameters."""
