"""Operating system services: locks, signals, standard streams, memory, files of bounded size, this machine.

Independent of models, tokens and bundles.
"""
