"""Calls measured: what they cost, what of an answer was heard, what a bad network leaves of an order."""
