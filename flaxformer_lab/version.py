"""The version of the package, without its metadata, which are absent where it is on the path uninstalled."""

__version__ = "0.1.0"
