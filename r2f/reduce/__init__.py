"""Chips with permanent faults: how much retraining each one needs, and giving it just that (Reduce; Hanif and Shafique,
DATE 2023)."""
