"""The control socket: how the command ``preforkd`` and other programs of the operator speak to the master.

protocol    what is said: one JSON object a line; pure
server      the master's end: never blocks, everything bounded; a guest in the master's own poll
client      the command's end: blocking
"""
