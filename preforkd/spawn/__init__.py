"""The only fork, and the channels between the processes it makes.

`fork` makes a child that owns nothing it should not; `channel` carries messages and descriptors; `prctl` asks the
kernel for what Python has no call for.
"""

from preforkd.spawn.channel import Channel, ChannelClosed, Message
from preforkd.spawn.fork import fork_child

__all__ = ["Channel", "ChannelClosed", "Message", "fork_child"]
