"""The one exception for what a user can mend."""


class UserError(ValueError):
    """Input that cannot be used. The message is one line: the field, the value and the remedy.

    The command lines print it without a traceback; everything else is a defect and keeps its own.
    """
