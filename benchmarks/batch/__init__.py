from .run import add_arguments, main

__all__ = ["add_arguments", "main"]
