"""The one exception that means: the user can fix this, and the message says how."""


class UserError(ValueError):
    """Something outside raysweep is wrong (a file, a setting, a disk); the message is one line that says what to do.

    The command line prints the message without a traceback and exits 1.
    """


class StoreError(UserError):
    """The store cannot be read or written: no fault of the cell that met it, and the next cell will meet it too."""
