"""The nodes as a client sees them: lanes of messages, who answers how fast, and the map they are found on.

It decides which messages travel together, whom to ask first, and when a newer map is taken.
May import: nothing of the other rooms.
"""

from coffre.client.nodes._maps import Background, MapSource
from coffre.client.nodes._peers import STUCK_SECONDS, Peers
from coffre.client.nodes._view import View, Views

__all__ = [
    "STUCK_SECONDS",
    "Background",
    "MapSource",
    "Peers",
    "View",
    "Views",
]
