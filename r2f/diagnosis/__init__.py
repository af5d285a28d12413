"""Finding a chip's permanent faults by running test networks on it (docs/chips.md, "Diagnosis")."""
