# What the server uses of waitress, which has no types of its own.
