"""The one exception that means: this is yours to mend, and here is how."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Raised for input that the caller can mend: a file, an option, a label.

    The message is one clear sentence. The command line prints it and exits with status 2; a
    `ValueError` that is not an `InputError` is a defect and keeps its traceback.
    """
