"""The errors a user's input can cause; the command line turns them into one line."""


class InputError(ValueError):
    """A mistake in what the user gave: a file, a field of a file, or an argument.

    The message is one sentence for the user. Everything else that is raised is a fault
    of the program and keeps its traceback.
    """


class InputWarning(UserWarning):
    """Input that was accepted although it looks wrong."""
