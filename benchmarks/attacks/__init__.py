"""Attacks on a running service, each by the kind of harm it tries to do, and how much of it others feel.

A module here may hold attacks in any of these forms:

    KINDS: dict[str, …] and `async def attack(kind, url, key)`     one for each name
    KINDS: dict[str, async function]                               the same
    `async def run(…)`                                             one

A function names what it needs to know by its parameters (`benchmarks.attacks.kinds.Target` has them); one that needs
anything else is a tool for other measurements, and no attack of this suite.
"""
