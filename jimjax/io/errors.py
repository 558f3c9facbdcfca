"""The errors a user's input can cause; the command line turns them into one line."""


class InputError(ValueError):
    """A mistake in what the user gave: a file, a field of a file, or an argument.

    The message is one sentence for the user. Everything else that is raised is a fault
    of the program and keeps its traceback.
    """


class FailureError(RuntimeError):
    """What keeps a command from going on although its input is right, as a full memory does.

    The message is one sentence for the user, as that of an `InputError` is.
    """


class InputWarning(UserWarning):
    """Input that was accepted although it looks wrong."""
