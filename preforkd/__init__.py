"""preforkd: a prefork daemon. (The map is written with the rest.)"""

__version__ = "0.1.0"
