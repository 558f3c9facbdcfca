"""How a subcommand ends early without a traceback."""


class Stop(Exception):  # noqa: N818 not always an error
    """Ends the program with one line and an exit code.

    Attributes:
        exit_code: of the process.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
