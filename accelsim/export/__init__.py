"""An int8 network as a file for other programs: what is deployed, once it is retrained."""
