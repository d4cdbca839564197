"""What the operating system gives: locks, signals, standard streams, memory, files of bounded size, this machine.

Nothing here knows of models, tokens or bundles.
"""
