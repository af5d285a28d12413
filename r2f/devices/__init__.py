"""Runs of several devices on one bus: which devices, their folders, what they came to."""
